/* How long a physical read of 4 KiB takes: bench IMAGE. Prints nanoseconds, the best of 50 rounds, for a page and for a word: the latter is what a call costs. */
#include <time.h>
#include "check.h"

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(int argc, char **argv)
{
	enum { ROUNDS = 50, READS = 2000 };
	static const size_t lengths[] = { 4096, 8 };
	static char buffer[4096];
	vmi_machine *machine;

	if (argc != 2)
		return 2;
	ANSWERS(VMI_STATUS_OK, vmi_machine_open(argv[1], NULL, &machine, &error));
	for (int i = 0; i < 2; i++) {
		double best = 1e18;

		for (int round = 0; round < ROUNDS; round++) {
			double began = now();

			for (uint64_t read = 0; read < READS; read++)
				if (vmi_machine_read(machine, (read % 64 + 16) << 12, buffer, lengths[i], NULL))
					return 1;
			double took = (now() - began) / READS;
			best = took < best ? took : best;
		}
		printf("%s %.1f\n", i ? "word" : "page", best);
	}
	vmi_machine_close(machine);
	return finish("bench");
}
