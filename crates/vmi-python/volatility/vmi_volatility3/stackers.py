"""Stackers: how Volatility comes from a location to the layers of a system, without a search."""

from typing import Any

import vmi
from volatility3.framework import interfaces
from volatility3.framework.interfaces.configuration import path_join
from volatility3.framework.layers import intel

from vmi_volatility3.layers import LinuxIntel5Level, MachineLayer
from vmi_volatility3.machines import Location

LINUX_LAYERS = {
    "32-bit": intel.LinuxIntel,
    "pae": intel.LinuxIntelPAE,
    "4-level": intel.LinuxIntel32e,
    "5-level": LinuxIntel5Level,
}


class VmiMachineStacker(interfaces.automagic.StackerLayerInterface):
    """In place of the memory as a file, which Volatility opens first: a layer that knows holes and reads faster."""

    stack_order = 1

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        location = Location.parse(str(context.layers[layer_name].config.get("location", "")))
        if location is None or isinstance(context.layers[layer_name], MachineLayer):
            return None
        name = context.layers.free_layer_name("VmiLayer")
        config_path = path_join("VmiHelper", name)
        context.config[path_join(config_path, "location")] = location.url
        layer = MachineLayer(context, config_path, name)
        guest = layer.opened.guest
        if guest is not None and guest.system == "windows":
            # The stacker of Windows takes the place of page tables from here, which spares it the search.
            layer._metadata = {
                "os": "Windows",
                "architecture": "Intel64" if guest.paging_mode == "4-level" else "Intel32",
                "pae": guest.paging_mode == "pae",
                "page_map_offset": guest.page_table,
            }
        return layer


class VmiLinuxStacker(interfaces.automagic.StackerLayerInterface):
    """The kernel's memory of a Linux guest: page tables, address-space randomisation and banner are known."""

    stack_order = 2
    exclusion_list = ["mac", "windows"]

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        machine = context.layers[layer_name]
        if not isinstance(machine, MachineLayer):
            return None
        guest, banner = machine.opened.guest, machine.opened.banner()
        if guest is None or banner is None:
            return None
        try:
            slide = guest.slide
        except vmi.Error:
            return None
        name = context.layers.free_layer_name("IntelLayer")
        config_path = path_join("IntelHelper", name)
        context.config[path_join(config_path, "memory_layer")] = layer_name
        context.config[path_join(config_path, "page_map_offset")] = guest.page_table
        context.config[path_join(config_path, "kernel_banner")] = str(banner, "latin-1")
        context.config[path_join(config_path, "kernel_virtual_offset")] = slide
        return LINUX_LAYERS[guest.paging_mode](context, config_path=config_path, name=name, metadata={"os": "Linux"})
