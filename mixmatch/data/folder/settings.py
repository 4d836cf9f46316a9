"""The ``data`` section of folders."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mixmatch.data.dataset import MAX_PIXELS, Background, DataSettings, Decoding, Fit, White
from mixmatch.settings import Count, PathText, to_name


class FolderSettings(DataSettings):
    """The settings of all data sets, and those of folders."""

    labels: str | None = Field(
        None,
        description="of folder: CSV file below data.root with columns file, class and group; class replaces folder "
        "names, images of one group are never split over training and validation",
    )
    fit: Fit = Field("crop", description="of folder: crop (central square), pad (black borders) or stretch")
    background: Background = Field(
        "white", description="of folder: color behind transparent pictures: white, black, gray or '#rrggbb' with quotes"
    )
    white: White | None = Field(
        None,
        description="of folder: value that is white in gray pictures whose format does not say it (float, 32-bit, "
        "signed); 0 is black; null: they are unreadable",
    )
    max_pixels: Count = Field(
        MAX_PIXELS, description="of folder: pictures of more pixels (width x height) are unreadable"
    )
    skip_unreadable: bool = Field(False, description="of folder: skip files that cannot be read as pictures")

    cache: bool | Annotated[PathText, Field(min_length=1)] = Field(
        True,
        description="of folder: where decoded pictures are kept: true (.mixmatch-cache in data.root), a folder, or "
        "false (nowhere)",
    )

    @property
    def decoding(self) -> Decoding:
        """The keys that determine how files become images."""
        return Decoding(fit=self.fit, background=self.background, white=self.white, max_pixels=self.max_pixels)

    def display_name(self) -> str:
        """Return the name of the root folder, without characters that are not valid everywhere."""
        return to_name(Path(self.root).resolve().name) or self.dataset
