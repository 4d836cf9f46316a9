"""Photographs in folders: an index of the files, their decoding, and a report for ``--check``."""

import torch

from mixmatch.data.dataset import ImageData, Report
from mixmatch.data.folder.settings import FolderSettings

__all__ = ["FolderSettings", "load_folder", "report_folder"]


def load_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> ImageData:
    """Read the pictures below ``settings.root``; see ``folder.dataset.read_folder``."""
    from mixmatch.data.folder.dataset import read_folder

    return read_folder(settings, device, quiet)


def report_folder(settings: FolderSettings, device: torch.device, quiet: bool) -> Report:
    """Read the pictures below ``settings.root`` and describe them; see ``folder.report.describe_folder``."""
    from mixmatch.data.folder.report import describe_folder

    return describe_folder(settings, device, quiet)
