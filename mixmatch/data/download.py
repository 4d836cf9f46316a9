"""Helpers for data sets that torchvision downloads, verifies and reads."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path

from mixmatch.data.dataset import DataSettings
from mixmatch.data.memory import check_memory
from mixmatch.errors import UserError, describe_error
from mixmatch.files import lock_file


def check_download(num_images: int, side: int, channels: int, settings: DataSettings) -> None:
    """Raise UserError if a data set of ``side`` x ``side`` images does not fit into memory, before it is downloaded.

    While it is read, this machine holds it twice: as in the files and as ``ImageData``; then resized.
    """
    size = settings.image_size or side
    check_memory(2 * num_images * side * side * channels, "use a machine with more memory")
    check_memory(num_images * size * size * channels)


@contextmanager
def explain_download_errors(
    title: str, folder: Path, files: Iterable[tuple[str, str]], advice: str = ""
) -> Iterator[None]:
    """Make ``folder``, keep other downloads out of it, silence torchvision, and turn its exceptions into one line.

    Args:
        title: of the data set.
        folder: directory that its files are in.
        files: URL and MD5 of each file that can be placed there by hand.
        advice: another way out, if there is one.

    Raises:
        UserError: if the data set cannot be read or downloaded.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with suppress(OSError):  # of a folder that cannot be written, files are only read
                stack.enter_context(lock_file(folder / ".download.lock", f"downloads or reads {title}"))
            stack.enter_context(redirect_stdout(None))
            yield
    except Exception as error:  # a corrupt pickle, archive or MAT-file can raise nearly anything
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or describe_error(error)
        urls = ", ".join(f"{url} (MD5 {md5})" for url, md5 in files)
        raise UserError(
            f"{folder}: cannot read or download {title} ({reason}); put {urls} into this folder{advice}"
        ) from error
