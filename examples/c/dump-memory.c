/*
 * Writes the memory of a machine to an image file: dump-memory [--snapshot] TARGET FILE [FORMAT]
 *
 *   dump-memory qemu:/run/guest.qmp guest.lime
 *   dump-memory --snapshot qemu:/run/guest.qmp guest.elf elf
 *
 * FORMAT is raw, lime (default), avml, elf or kdump. With --snapshot the image is of one moment, for which a running guest stands still.
 *
 * Built with: cc dump-memory.c $(pkg-config --cflags --libs vmi-capi)
 * Exit code: 0 if all memory was written, 1 if something failed or memory could not be read, 2 for wrong usage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <vmi.h>

static int failed(vmi_error *error)
{
	fprintf(stderr, "dump-memory: %s\n", vmi_error_message(error));
	vmi_error_close(error);
	return 1;
}

/* Counts per cent on a terminal. */
static void progress(uint64_t done, uint64_t all, void *user_data)
{
	int *shown = user_data;
	int now = all ? (int)(done * 100 / all) : 100;

	if (now == *shown)
		return;
	*shown = now;
	fprintf(stderr, "\r%3d %%%s", now, done == all ? "\n" : "");
}

static int format_of(const char *name)
{
	static const char *const names[] = { "raw", "lime", "avml", "elf", "kdump" };

	for (int i = 0; i < 5; i++)
		if (!strcmp(name, names[i]))
			return i; /* the order of vmi_format */
	return -1;
}

int main(int argc, char **argv)
{
	vmi_error *error;
	vmi_machine *machine = NULL, *snapshot = NULL;
	vmi_snapshot_report report;
	vmi_written written;
	int first = argc > 1 && !strcmp(argv[1], "--snapshot") ? 2 : 1;
	int format = argc == first + 3 ? format_of(argv[first + 2]) : VMI_FORMAT_LIME;
	int shown = -1, code = 1;

	if (argc < first + 2 || argc > first + 3 || format < 0) {
		fprintf(stderr, "usage: dump-memory [--snapshot] TARGET FILE [raw|lime|avml|elf|kdump]\n");
		return 2;
	}
	if (vmi_machine_open(argv[first], NULL, &machine, &error)) {
		code = failed(error);
		goto out;
	}
	if (first == 2) {
		if (vmi_machine_snapshot(machine, &snapshot, &report, &error)) {
			code = failed(error);
			goto out;
		}
		fprintf(stderr, "the guest stood still for %" PRIu64 " us\n", report.stood_still / 1000);
	}
	if (vmi_machine_write_image(snapshot ? snapshot : machine, argv[first + 1], (uint32_t)format,
				    isatty(STDERR_FILENO) ? progress : NULL, &shown, &written, &error)) {
		code = failed(error);
		goto out;
	}
	printf("%" PRIu64 " bytes of memory, %" PRIu64 " in the file, %" PRIu64 " unreadable\n", written.memory, written.stored,
	       written.unreadable);
	code = written.unreadable != 0;
out:
	vmi_machine_close(snapshot);
	vmi_machine_close(machine);
	return code;
}
