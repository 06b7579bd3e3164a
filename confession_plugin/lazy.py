"""Moved to `confession_plugin.patching`."""

from confession_plugin.patching import when_imported as when_imported
