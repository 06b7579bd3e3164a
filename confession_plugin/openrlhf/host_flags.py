"""The host's own flags, as its command line parses them: the one place that captures them.

The command line parses its flags under ``if __name__ == "__main__"`` and then calls ``ray.init``.  Two of its calls
are watched: ``hierarchize`` hands over the parsed flags, and ``ray.init`` is the last moment before anything
expensive.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confession_plugin.errors import ConfigError, HostError

CLI = "openrlhf.cli.train_ppo_ray"

#: ``start(args, ray_init, keywords)``: the parsed flags, ``ray.init``, and what the host was about to call it with.
Start = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]


@contextlib.contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute, for the length of a block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def run(argv: Sequence[str], start: Start | None = None) -> None:
    """Run the host's command line with these flags.

    Args:
        start: called once in place of the host's ``ray.init``, with the parsed, validated and nested flags.  None:
            nothing is watched, this is ``python -m openrlhf.cli...``.

    Raises:
        SystemExit, AssertionError: the host refuses the flags.
        HostError: this version does not parse its flags as expected.
    """
    with contextlib.ExitStack() as stack:
        if start is not None:
            _watch(start, stack)
        stack.enter_context(instead(sys, "argv", [CLI, *argv]))
        runpy.run_module(CLI, run_name="__main__", alter_sys=True)


def parse(argv: Sequence[str]) -> Any:
    """The host's parsed, validated and nested flags (``args.actor.num_nodes``); nothing is started.

    Raises:
        ConfigError: the host refuses the flags; its own words.
        HostError: this version does not parse its flags as expected, or cannot be imported.
    """

    def stop(args: Any, *_: Any) -> None:
        raise _Parsed(args)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            run(argv, stop)
    except _Parsed as parsed:
        return parsed.flags
    except SystemExit:  # argparse has printed its usage, a page long, and then the reason
        raise ConfigError(said.getvalue().rpartition("error: ")[2].strip() or "OpenRLHF refuses these flags") from None
    except ImportError as error:
        raise HostError(f"OpenRLHF cannot be imported: {error}") from error
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"OpenRLHF refuses these flags: {error}") from error
    raise HostError(f"this OpenRLHF's {CLI} starts no Ray; see the tested versions")


class _Parsed(BaseException):
    """Carries the parsed flags out of the host's command line."""

    def __init__(self, args: Any) -> None:
        self.flags = args


def _watch(start: Start, stack: contextlib.ExitStack) -> None:
    import ray
    from openrlhf.utils import config as host_config

    parsed: list[Any] = []
    hierarchize, ray_init = host_config.hierarchize, ray.init
    until_start = stack.enter_context(contextlib.ExitStack())

    def watched_hierarchize(*args: Any, **kwargs: Any) -> Any:
        parsed.append(hierarchize(*args, **kwargs))
        return parsed[-1]

    def watched_init(**keywords: Any) -> Any:
        until_start.close()  # from here on the host's calls are its own
        if not parsed:
            raise HostError(f"this OpenRLHF's {CLI} does not parse its flags as expected; see the tested versions")
        return start(parsed[-1], ray_init, keywords)

    until_start.enter_context(instead(host_config, "hierarchize", watched_hierarchize))
    until_start.enter_context(instead(ray, "init", watched_init))
    until_start.enter_context(instead(ray, "is_initialized", lambda: False))
