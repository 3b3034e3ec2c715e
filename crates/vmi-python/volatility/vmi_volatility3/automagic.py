"""What happens before Volatility looks for layers: the target is opened, and a symbol file made if there is none."""

import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import vmi
from volatility3.framework import constants, interfaces
from volatility3.framework.automagic import symbol_cache
from volatility3.framework.configuration import requirements

from vmi_volatility3.machines import Location, OpenedMachine, opened

log = logging.getLogger(__name__)

SINGLE_LOCATION = "automagic.LayerStacker.single_location"


class VmiTarget(interfaces.automagic.AutomagicInterface):
    """Opens the target; Volatility prints why, if it cannot be opened."""

    # Behind what brings Volatility's list of symbol files up to date (0), before layers are stacked (10).
    priority = 4

    def __call__(self, context: Any, config_path: str, requirement: Any, progress_callback: Any = None) -> None:
        location = Location.parse(str(context.config.get(SINGLE_LOCATION, "") or ""))
        if location is not None:
            opened(location)
            context.config[SINGLE_LOCATION] = location.url


class VmiSymbols(interfaces.automagic.AutomagicInterface):
    """Makes a symbol file of a Linux kernel for which Volatility has none, from the kernel's own memory."""

    priority = 5
    exclusion_list = ["windows", "mac"]

    def __call__(self, context: Any, config_path: str, requirement: Any, progress_callback: Any = None) -> None:
        location = Location.parse(str(context.config.get(SINGLE_LOCATION, "") or ""))
        if location is None or not location.symbols:
            return
        if not self.find_requirements(context, config_path, requirement, requirements.SymbolTableRequirement, shortcut=True):
            return
        known = opened(location)
        banner = known.banner()
        if banner is None:
            return
        cache = symbol_cache.SqliteCache(os.path.join(constants.CACHE_PATH, constants.IDENTIFIERS_FILENAME))
        if banner in cache.get_identifier_dictionary(operating_system="linux"):
            return
        if progress_callback:
            progress_callback(0, "Making a symbol file from the guest's memory")
        try:
            path = write_symbols(known, banner)
        except vmi.WriteIsfError as error:
            log.warning("no symbol file fits this kernel, and none can be made: %s", error)
            return
        log.info("symbol file of this kernel: %s", path)
        cache.update(progress_callback)


def write_symbols(known: OpenedMachine, banner: bytes) -> Path:
    """Writes the symbol file into the directory of those that Volatility downloads, or finds it there."""
    words = re.findall(r"[\w.+-]+", banner.decode("ascii", "replace"), re.ASCII)
    name = f"vmi-{''.join(words[2:3])[:64]}-{hashlib.sha256(banner).hexdigest()[:16]}.json.xz"
    directory = Path(constants.SYMBOL_BASEPATHS[-1]) / "linux"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    guest = known.guest
    if guest is not None and not path.exists():
        began = time.monotonic()
        for remark in guest.write_isf(path):
            log.info("%s", remark)
        log.info("made in %.1f s", time.monotonic() - began)
    return path
