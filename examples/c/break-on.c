/*
 * Prints who runs an instruction of a running guest, each time that it is run: break-on TARGET SYMBOL [COUNT [SECONDS]]
 *
 *   break-on qemu:/run/guest.qmp do_exit
 *   break-on qemu:/run/guest.qmp __x64_sys_execve 10 60
 *
 * The guest runs on, with its code as it was, however this program ends. Ctrl-C ends it after the event at hand.
 *
 * Built with: cc break-on.c $(pkg-config --cflags --libs vmi-capi)
 * Exit code: 0 if all went well, 1 if something failed, 2 for wrong usage.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <vmi.h>

static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

static int failed(vmi_error *error)
{
	fprintf(stderr, "break-on: %s\n", vmi_error_message(error));
	vmi_error_close(error);
	return 1;
}

/* What the callback knows. */
struct watch {
	vmi_guest *guest;
	unsigned long left;
};

/* Called with each event, while the guest stands still. */
static uint32_t event(vmi_event *event, void *user_data)
{
	struct watch *watch = user_data;
	vmi_event_info info;
	vmi_registers registers;
	vmi_processes *running = NULL;
	vmi_process process = { .name = "?" };

	if (vmi_event_get_info(event, &info, NULL) || vmi_event_get_registers(event, &registers, NULL))
		return VMI_ACTION_END;
	/* Nobody is known to run where the vCPU is in firmware: that is no reason to end. */
	if (!vmi_guest_running_on(watch->guest, info.vcpu, &running, NULL))
		vmi_processes_next(running, &process, NULL);
	printf("vCPU %" PRIu32 " %#" PRIx64 " %" PRIu32 " %s rdi=%#" PRIx64 "\n", info.vcpu, info.instruction, process.pid, process.name,
	       registers.rdi);
	fflush(stdout);
	vmi_processes_close(running);
	return --watch->left && !interrupted ? VMI_ACTION_RESUME : VMI_ACTION_END;
}

int main(int argc, char **argv)
{
	vmi_error *error;
	vmi_machine *machine = NULL;
	vmi_events *events;
	vmi_trap trap = { .kind = VMI_EVENT_KIND_SOFTWARE_BREAKPOINT };
	struct watch watch = { .left = 0 };
	uint64_t number, seconds = 0, seen = 0, total = 0;
	int code = 0;

	if (argc < 3 || argc > 5) {
		fprintf(stderr, "usage: break-on TARGET SYMBOL [COUNT [SECONDS]]\n");
		return 2;
	}
	if (argc > 3)
		watch.left = strtoul(argv[3], NULL, 0);
	if (argc > 4)
		seconds = strtoul(argv[4], NULL, 0);
	signal(SIGINT, interrupt);

	if (vmi_machine_open(argv[1], NULL, &machine, &error) || vmi_guest_attach(machine, NULL, &watch.guest, &error) ||
	    vmi_guest_get_address(watch.guest, argv[2], &trap.at, &error) || vmi_events_open(machine, &events, &error) ||
	    vmi_events_set_trap(events, &trap, &number, &error)) {
		code = failed(error);
	} else {
		/* By the second, so that Ctrl-C is seen where nothing happens. */
		for (uint64_t second = 0; !code && !interrupted && (!seconds || second < seconds); second++) {
			if (vmi_events_run(events, 1000, event, &watch, &seen, &error))
				code = failed(error);
			total += seen;
			if (seen && !watch.left)
				break;
		}
		fprintf(stderr, "%" PRIu64 " events\n", total);
	}
	/* All traps are gone with the machine, and the guest runs. */
	vmi_machine_close(machine);
	return code;
}
