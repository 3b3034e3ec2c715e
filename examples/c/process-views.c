/*
 * Prints the processes of a machine that something hides, and which views know them: process-views TARGET [SYMBOL-FILE...]
 *
 *   process-views guest.lime
 *   process-views guest.dmp symbols/windows
 *
 * Built with: cc process-views.c $(pkg-config --cflags --libs vmi-capi)
 * Exit code: 0 if nothing hides, 3 if something does, 1 if something failed, 2 for wrong usage. Of a running guest the views are of different moments: what comes or goes
 * meanwhile seems to hide.
 */
#include <inttypes.h>
#include <stdio.h>
#include <vmi.h>

static const struct {
	uint32_t view;
	const char *name;
} views[] = {
	{ VMI_PROCESS_VIEW_LIST, "list" },	   { VMI_PROCESS_VIEW_ID_TABLE, "ids" },	   { VMI_PROCESS_VIEW_CHILDREN, "children" },
	{ VMI_PROCESS_VIEW_THREADS, "threads" }, { VMI_PROCESS_VIEW_SUBSYSTEM, "subsystem" }, { VMI_PROCESS_VIEW_POOL, "pool" },
};

/* Prints why a call failed. Returns the exit code. */
static int failed(vmi_error *error)
{
	fprintf(stderr, "process-views: %s\n", vmi_error_message(error));
	vmi_error_close(error);
	return 1;
}

static void print(const vmi_seen_process *process)
{
	printf("%6" PRIu32 " %-16s", process->pid, process->name);
	for (size_t i = 0; i < sizeof views / sizeof *views; i++) {
		/* What is in neither, the system has not, or it could not be had whole. */
		if (process->known_to & views[i].view)
			printf(" +%s", views[i].name);
		else if (process->unknown_to & views[i].view)
			printf(" -%s", views[i].name);
	}
	putchar('\n');
}

static int survey(vmi_guest *guest)
{
	vmi_error *error;
	vmi_seen_processes *processes;
	vmi_seen_process process;
	vmi_status status;
	int code = 0;

	if (vmi_guest_survey_processes(guest, &processes, &error))
		return failed(error);
	/* Why views failed is told behind the processes. */
	while ((status = vmi_seen_processes_next(processes, &process, &error)) != VMI_STATUS_END) {
		if (status != VMI_STATUS_OK) {
			code = failed(error);
		} else if (process.hidden) {
			print(&process);
			code = code ? code : 3;
		}
	}
	vmi_seen_processes_close(processes);
	return code;
}

int main(int argc, char **argv)
{
	vmi_error *error;
	vmi_options *options;
	vmi_machine *machine = NULL;
	vmi_guest *guest = NULL;
	int code;

	if (argc < 2) {
		fprintf(stderr, "usage: process-views TARGET [SYMBOL-FILE...]\n");
		return 2;
	}
	if (vmi_options_new(&options, &error))
		return failed(error);
	for (int i = 2; i < argc; i++)
		if (vmi_options_add_symbols(options, argv[i], &error))
			return failed(error);

	if (vmi_machine_open(argv[1], options, &machine, &error) || vmi_guest_attach(machine, options, &guest, &error))
		code = failed(error);
	else
		code = survey(guest);

	/* Closes the guest as well. Closing what is NULL does nothing. */
	vmi_machine_close(machine);
	vmi_options_close(options);
	return code;
}
