/*
 * A process of live guests that tests drive:
 *
 *   actor page             lives for ever with a page at a known address (struct page); first prints its facts
 *   actor report           prints what that process saw at its last tick, every 5 ms
 *   actor write N          has that process write page.ordered N times, and waits until it has
 *   actor call NAME N [CPU...]   makes N calls of a system call that nobody else in the guest makes, from one thread
 *                          pinned to each CPU (default: one thread, unpinned), and prints how many each made
 *   actor crash-kernel KERNEL INITRAMFS COMMAND-LINE   loads the kernel that is to run when this one has crashed
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kexec.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((struct page *)0x40000000)
#define REPORT "/data/actor.report"

/* What tests read, write and watch from outside. */
struct page {
	volatile uint64_t ticks;   /* one more every 5 ms */
	volatile uint64_t inbox;   /* written from outside only, and reported */
	volatile uint64_t ordered; /* one more for each write that "actor write" ordered */
	uint64_t pattern[509];     /* each word is its own address xor 0x5a5a5a5a5a5a5a5a */
};

/* Shared with the other invocations, by a file. */
struct report {
	volatile uint64_t ticks, inbox, ordered, wanted, clock;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000 }, NULL);
}

static struct report *report(int flags)
{
	int fd = open(REPORT, O_RDWR | flags, 0600);
	if (fd < 0 || ftruncate(fd, 4096)) fail(REPORT);
	void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED) fail("mmap");
	return at;
}

static uint64_t physical(const void *at)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	if (pread(fd, &entry, 8, (uintptr_t)at / 4096 * 8) != 8 || !(entry >> 63)) fail("pagemap");
	close(fd);
	return (entry & ((1ull << 55) - 1)) * 4096;
}

static void page(void)
{
	struct page *page = mmap(PAGE, sizeof *page, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
	if (page != PAGE || mlock(page, sizeof *page)) fail("page");
	for (int i = 0; i < 509; i++) page->pattern[i] = (uintptr_t)&page->pattern[i] ^ 0x5a5a5a5a5a5a5a5a;
	struct report *r = report(O_CREAT);
	printf("pid %d\npage 0x%lx\nphysical 0x%lx\nready 1\n", getpid(), (long)page, (long)physical(page));
	fflush(stdout);
	for (;;) {
		page->ticks++;
		while (page->ordered < r->wanted) page->ordered++;
		r->ordered = page->ordered;
		r->inbox = page->inbox;
		r->clock = now();
		r->ticks = page->ticks;
		pause_ms(5);
	}
}

static const struct { const char *name; long number, argument; } CALLS[] = {
	{ "personality", SYS_personality, 0xffffffff /* only asks */ },
	{ "sync", SYS_sync, 0 },
};

struct caller {
	pthread_t thread;
	long cpu, wanted, made, number, argument;
};

static pthread_barrier_t all_ready;

static void *caller(void *argument)
{
	struct caller *c = argument;
	if (c->cpu >= 0) {
		cpu_set_t cpus;
		CPU_ZERO(&cpus);
		CPU_SET(c->cpu, &cpus);
		if (sched_setaffinity(0, sizeof cpus, &cpus)) fail("sched_setaffinity");
	}
	pthread_barrier_wait(&all_ready);
	for (; c->made < c->wanted; c->made++) syscall(c->number, c->argument);
	return NULL;
}

static void call(const char *name, long wanted, int cpus, char **cpu)
{
	static struct caller callers[64];
	unsigned i = 0, threads = cpus ? cpus : 1;
	while (i < 2 && strcmp(CALLS[i].name, name)) i++;
	if (i == 2 || threads > 64) exit(2);
	pthread_barrier_init(&all_ready, NULL, threads);
	for (unsigned t = 0; t < threads; t++) {
		callers[t] = (struct caller){ .cpu = cpus ? atol(cpu[t]) : -1, .wanted = wanted,
			.number = CALLS[i].number, .argument = CALLS[i].argument };
		if (pthread_create(&callers[t].thread, NULL, caller, &callers[t])) fail("pthread_create");
	}
	for (unsigned t = 0; t < threads; t++) {
		pthread_join(callers[t].thread, NULL);
		printf("cpu %ld made %ld\n", callers[t].cpu, callers[t].made);
	}
}

static void crash_kernel(const char *kernel, const char *initramfs, const char *command_line)
{
	int files[] = { open(kernel, O_RDONLY), open(initramfs, O_RDONLY) };
	if (files[0] < 0 || files[1] < 0) fail("open");
	if (syscall(SYS_kexec_file_load, files[0], files[1], strlen(command_line) + 1, command_line, KEXEC_FILE_ON_CRASH))
		fail("kexec_file_load");
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	if (!strcmp(verb, "page")) {
		page();
	} else if (!strcmp(verb, "report")) {
		struct report *r = report(0);
		printf("ticks %lu\ninbox %lu\nordered %lu\nclock %lu\n", r->ticks, r->inbox, r->ordered, r->clock);
	} else if (!strcmp(verb, "write") && argc == 3) {
		struct report *r = report(0);
		for (r->wanted += atol(argv[2]); r->ordered < r->wanted;) pause_ms(1);
	} else if (!strcmp(verb, "call") && argc > 3) {
		call(argv[2], atol(argv[3]), argc - 4, argv + 4);
	} else if (!strcmp(verb, "crash-kernel") && argc == 5) {
		crash_kernel(argv[2], argv[3], argv[4]);
	} else {
		return 2;
	}
	return 0;
}
