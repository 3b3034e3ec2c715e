/*
 * Says that a buffer is longer than it is, as no program may: overrun IMAGE
 *
 * For AddressSanitizer, which must say where that is written to: in the library. Without it anything may happen.
 */
#include "check.h"

int main(int argc, char **argv)
{
	vmi_machine *machine;
	unsigned char *buffer = malloc(4000);

	if (argc != 2)
		return 2;
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &machine, &error));
	ANSWERS(VMI_STATUS_OK, vmi_machine_read(machine, 0x200000, buffer, 4096, &error));
	vmi_machine_close(machine);
	free(buffer);
	return finish("overrun");
}
