"""Volatility's Linux plugins on one image, all in one process, so that the symbol file is read once.

    plugins.py SYMBOLS CACHE IMAGE [PLUGIN...]      IMAGE: a file, or a location such as vmi:qemu:/run/guest.qmp

A line of JSON for each plugin: its name, its rows or the error that ended it, and the seconds it took. Without names: all Linux plugins that
need no further argument.
"""

import json
import pathlib
import re
import signal
import sys
import time
import traceback

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.framework.configuration import requirements
from volatility3.framework.interfaces.configuration import path_join

# Those that are there twice, under their old names too, and those that write files.
LEFT_OUT = re.compile(r"linux\.(check_\w+|hidden_modules|keyboard_notifiers|malfind|modxview|netfilter|tty_check)\.|RecoverFs|ModuleExtract")


# Seconds that a plugin may take; the first one, which reads the symbol file, takes the longest.
LIMIT = 120


class NoFile(interfaces.plugins.FileHandlerInterface):
    """Nothing is to be written."""

    def __init__(self, filename):
        raise OSError("no files are written here")


def plain(value):
    if isinstance(value, interfaces.renderers.BaseAbsentValue):
        return None
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return str(value)


def rows(tree):
    found = []
    names = [column.name for column in tree.columns]

    def visit(node, _):
        found.append(dict(zip(names, map(plain, node.values))))

    error = tree.populate(visit, None, fail_on_errors=True)
    if error:
        raise error
    return found


def why(error):
    """What went wrong, and where in the plugin."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "volatility3" in frame.filename]
    place = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error} ({place})".replace("\n", " ")


def too_long(*_):
    raise TimeoutError(f"no end after {LIMIT} s")


def main(symbols, cache, image, *wanted):
    signal.signal(signal.SIGALRM, too_long)
    constants.OFFLINE = True
    constants.CACHE_PATH = cache
    volatility3.symbols.__path__ = [symbols, *constants.SYMBOL_BASEPATHS]
    framework.require_interface_version(2, 0, 0)
    framework.import_files(volatility3.plugins, True)
    classes = framework.list_plugins()
    context = contexts.Context()
    location = image if re.match(r"[\w+.-]{2,}:", image) else pathlib.Path(image).resolve().as_uri()
    context.config["automagic.LayerStacker.single_location"] = location
    available = automagic.available(context)
    names = sorted(name for name in classes if name.startswith("linux.") and not LEFT_OUT.search(name))
    kernel = None
    first = "linux.boottime.Boottime"
    for name in sorted(names, key=lambda name: name != first):
        plugin = classes[name]
        chosen = not wanted or any(word in name for word in wanted)
        if not chosen and kernel:
            continue
        needs = plugin.get_requirements()
        if any(not need.optional and isinstance(need, interfaces.configuration.SimpleTypeRequirement | requirements.ListRequirement) and need.default is None for need in needs):
            continue
        start, found, error = time.monotonic(), None, None
        signal.alarm(LIMIT)
        # Plugins give classes of their own to types, which those that were looked up before do not have.
        context.symbol_space._resolved.clear()
        try:
            path = path_join("plugins", plugin.__name__)
            if kernel and any(isinstance(need, requirements.ModuleRequirement) and need.name == "kernel" for need in needs):
                context.config[path_join(path, "kernel")] = kernel
            magic = automagic.choose_automagic(available, plugin)
            found = rows(plugins.construct_plugin(context, magic, plugin, "plugins", None, NoFile).run())
            kernel = kernel or context.config[path_join(path, "kernel")]
        except Exception as problem:
            error = why(problem)
        signal.alarm(0)
        if chosen:
            seconds = round(time.monotonic() - start, 1)
            print(json.dumps({"plugin": name, "rows": found, "error": error, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
