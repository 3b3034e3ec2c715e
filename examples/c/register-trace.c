/*
 * Prints what vCPUs of a running guest write into CR3 or a model-specific register, each time: register-trace TARGET cr3|NUMBER [COUNT [SECONDS]]
 *
 *   register-trace xen:web1 cr3
 *   register-trace xen:web1 0xc0000082 1 60
 *
 * Only hypervisors tell of that: Xen does, QEMU's gdb stub does not. The guest runs on however this program ends.
 *
 * Built with: cc register-trace.c $(pkg-config --cflags --libs vmi-capi)
 * Exit code: 0 if all went well, 1 if something failed, 2 for wrong usage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vmi.h>

static int failed(vmi_error *error)
{
	fprintf(stderr, "register-trace: %s\n", vmi_error_message(error));
	vmi_error_close(error);
	return 1;
}

/* Called with each event, while the vCPU stands still before the write. VMI_ACTION_DENY would keep the register as it is. */
static uint32_t event(vmi_event *event, void *user_data)
{
	unsigned long *left = user_data;
	vmi_event_info info;

	if (vmi_event_get_info(event, &info, NULL))
		return VMI_ACTION_END;
	printf("vCPU %" PRIu32 " at %#" PRIx64 ": %#" PRIx64 " -> %#" PRIx64 "\n", info.vcpu, info.instruction, info.old_value, info.new_value);
	fflush(stdout);
	return --*left ? VMI_ACTION_RESUME : VMI_ACTION_END;
}

int main(int argc, char **argv)
{
	vmi_trap trap = { .kind = VMI_EVENT_KIND_CONTROL_REGISTER, .which = VMI_CONTROL_REGISTER_CR3, .on_change = true };
	vmi_machine *machine;
	vmi_events *events;
	vmi_error *error;
	vmi_status status;
	uint64_t number;

	if (argc < 3 || argc > 5) {
		fprintf(stderr, "usage: register-trace TARGET cr3|NUMBER [COUNT [SECONDS]]\n");
		return 2;
	}
	unsigned long left = argc > 3 ? strtoul(argv[3], NULL, 0) : 10;
	uint64_t milliseconds = argc > 4 ? strtoull(argv[4], NULL, 0) * 1000 : VMI_FOREVER;

	if (strcmp(argv[2], "cr3")) {
		trap.kind = VMI_EVENT_KIND_MSR;
		trap.which = (uint32_t)strtoul(argv[2], NULL, 0);
	}
	if (vmi_machine_open(argv[1], NULL, &machine, &error))
		return failed(error);
	status = vmi_events_open(machine, &events, &error);
	/* A back end that has no such events says so here, before anything is asked of the guest. */
	if (!status)
		status = vmi_events_set_trap(events, &trap, &number, &error);
	if (!status && left)
		status = vmi_events_run(events, milliseconds, event, &left, NULL, &error);
	vmi_machine_close(machine);
	return status ? failed(error) : 0;
}
