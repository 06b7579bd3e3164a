"""Moved to `confession_plugin.openrlhf.cpu`."""

from confession_plugin.openrlhf.cpu import *  # noqa: F403
