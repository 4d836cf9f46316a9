"""Train MixMatch, or the supervised baseline, as a config file says. `python3 main.py --help` lists every key."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from mixmatch.config import list_keys, load_config
from mixmatch.errors import Diverged, UserError, one_line

DEFAULT_CONFIG = Path(__file__).parent / "config.yml"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see main.py --help")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: if it is not understood.
    """
    keys = []
    for key, field in list_keys():
        default = yaml.safe_dump(field.default, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
        keys.append(f"  {key:<28}{default:<10} {field.description}")
    parser = _Parser(
        prog="main.py",
        usage="python3 main.py [--config FILE] [--run DIRECTORY] [key=value ...]",
        description="Train MixMatch, or the supervised baseline. The same command again continues an unfinished run.",
        epilog="keys, their defaults and what they mean:\n" + "\n".join(keys),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="YAML file of what differs from the default"
    )
    parser.add_argument("--run", type=Path, help="run directory (default: runs/<name>-seed<seed>)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the config file: train.lr=0.03")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 1 diverged, 2 something that the user can mend, 128 + N stopped by signal N.
    """
    try:
        options = parse_arguments(arguments)
        config = load_config(options.config, options.overrides)
        from mixmatch.train import Stopped, train  # after the config is known to be good: torch takes seconds to load

        try:
            train(config, options.run or Path("runs", config.run_name()))
        except Stopped as stop:
            print(stop)
            return 128 + stop.signal
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output is gone: end as silently as other programs do
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 141
    except OSError as error:  # such as a full disk behind a redirected output
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
