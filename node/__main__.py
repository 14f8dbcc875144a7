"""`tidings` and `python -m node`: runs the command line and turns every error into one clear line."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. A traceback shows only
    with --debug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" not in words or "json" in words:
        # gRPC's own log speaks of its source files; what a peer did wrong is told by `status`, in words.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What this program forks runs another program at once. gRPC would tidy up in between, and abort the child where one
    # of its threads is busy; only where there is no vfork, so not on Linux.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(run(words, debug="--debug" in words))


def run(words: list[str], *, debug: bool) -> int:
    """The exit code of one command; errors are told on stderr."""
    import typer

    from crypto.errors import CryptoError
    from fusion.errors import FusionError
    from node.cli import app
    from node.errors import NodeError, UsageError

    complain = functools.partial(_complain, typed=words)
    try:
        return app(words, prog_name="tidings", standalone_mode=False) or 0
    except typer.TyperException as error:
        return complain(getattr(error, "format_message", error.__str__)(), 2)
    except typer.Abort:
        return complain("Stopped; nothing was changed.", 130)
    except UsageError as error:
        return complain(str(error), 2, raised=error if debug else None)
    except (NodeError, FusionError, CryptoError) as error:
        return complain(str(error), 1, raised=error if debug else None)
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 0
    except KeyboardInterrupt:
        return complain("Interrupted.", 130)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return complain(f"{named}{error.strerror or error}.", 1, raised=error if debug else None)
    except Exception as error:  # noqa: BLE001 - the last line of defense: people never see a traceback unasked
        text = f"Something went wrong inside Tidings ({type(error).__name__}: {error}); --debug shows where."
        return complain(text, 1, raised=error if debug else None)


def _complain(text: str, code: int, raised: BaseException | None = None, *, typed: Sequence[str] = ()) -> int:
    if raised is not None:
        import traceback

        traceback.print_exception(raised)
    sentence = " ".join(text.split())
    first = sentence.split(" ", 1)[0]
    # Neither a file nor a name that somebody typed: that stays as it is written.
    if first.isalpha() and not any(word == first or word.endswith(f"={first}") for word in typed):
        sentence = sentence[:1].upper() + sentence[1:]
    print(f"Error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
