"""The ``data`` section of folders."""

import re
from pathlib import Path

from pydantic import Field

from mixmatch.data.dataset import DataSettings, Fit


class FolderSettings(DataSettings):
    """The settings of all data sets, and those of folders."""

    labels: str | None = Field(
        None,
        description="of folder: CSV file below data.root with columns file, class and group; class replaces folder "
        "names, images of one group are never split over training and validation",
    )
    fit: Fit = Field("crop", description="of folder: crop (central square), pad (black borders) or stretch")
    skip_unreadable: bool = Field(False, description="of folder: skip files that cannot be read as pictures")

    def display_name(self) -> str:
        """Return the name of the root folder, without characters that are not valid everywhere."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.root).resolve().name).strip("-.") or self.dataset
