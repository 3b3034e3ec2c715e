/*
 * Prints the processes of a machine: process-list TARGET [SYMBOL-FILE...]
 *
 *   process-list guest.lime
 *   process-list qemu:/run/guest.qmp
 *
 * Built with: cc process-list.c $(pkg-config --cflags --libs vmi-capi)
 * Exit code: 0 if all went well, 1 if something failed or a row could not be read, 2 for wrong usage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <vmi.h>

/* Prints why a call failed. Returns the exit code. */
static int failed(vmi_error *error)
{
	fprintf(stderr, "process-list: %s\n", vmi_error_message(error));
	vmi_error_close(error);
	return 1;
}

static void print_id(uint32_t id)
{
	if (id == VMI_UNKNOWN_ID)
		printf(" %6s", "-");
	else
		printf(" %6" PRIu32, id);
}

static void print(const vmi_process *process)
{
	printf("%6" PRIu32, process->pid);
	print_id(process->parent_pid);
	print_id(process->uid);
	printf(" %c %-16s", process->state ? process->state : '-', process->name);
	for (size_t i = 0; i < process->argument_count; i++)
		printf(" %s", process->arguments[i]);
	putchar('\n');
}

static int list(vmi_guest *guest)
{
	vmi_error *error;
	vmi_processes *processes;
	vmi_process process;
	vmi_status status;
	char *version;
	int code = 0;

	if (vmi_guest_get_version(guest, &version, &error))
		return failed(error);
	fprintf(stderr, "%s\n", version);
	vmi_string_free(version);

	if (vmi_guest_list_processes(guest, &processes, &error))
		return failed(error);
	/* A row that could not be read is an error in its place; the list goes on behind it. */
	while ((status = vmi_processes_next(processes, &process, &error)) != VMI_STATUS_END) {
		if (status == VMI_STATUS_OK)
			print(&process);
		else
			code = failed(error);
	}
	vmi_processes_close(processes);
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
		fprintf(stderr, "usage: process-list TARGET [SYMBOL-FILE...]\n");
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
		code = list(guest);

	/* Closes the guest as well. Closing what is NULL does nothing. */
	vmi_machine_close(machine);
	vmi_options_close(options);
	return code;
}
