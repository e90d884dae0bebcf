"""The command that lists optimisers."""

from __future__ import annotations

from bench.commands.options import AsJson, PluginsDir


def optimizers(plugins_dir: PluginsDir = None, as_json: AsJson = False) -> None:
    """List the optimisers that train.optimizer can name."""
    from bench.commands.catalogue import print_listing

    print_listing("optimizer", as_json, plugins_dir)
