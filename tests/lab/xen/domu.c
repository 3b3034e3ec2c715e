/*
 * What a domain does on order, and says that it did:
 *
 *   domu hold                       lives for ever with PAGES pages at HELD, shared by all invocations; prints "pid N", "held ADDRESS COUNT", "pfn INDEX PFN" each
 *   domu see INDEX WORD             prints a word of a held page
 *   domu set INDEX WORD VALUE       writes it
 *   domu touch r|w|x INDEX N        reads or writes word 0 of the page, or calls the RET at its end, N times; prints "rip ADDRESS" of the instruction first,
 *                                   and how long it took: "nanoseconds N"
 *   domu cpuid LEAF SUBLEAF N       executes CPUID N times, prints what the last one gave: "cpuid EAX EBX ECX EDX"
 *   domu gsbase BASE N              has the kernel write MSR_GS_BASE or MSR_KERNEL_GS_BASE N times, with BASE, BASE + 4096, ...; needs the kernel's nofsgsbase
 *   domu msr INDEX VALUE N          writes an MSR N times through /dev/cpu/0/msr
 *   domu steps N                    CPUID leaf MARK, then N times DEC and JNZ, then CPUID leaf MARK: 2N instructions and a MOV between them
 *   domu call N                     N calls of sched_rr_get_interval, which nobody else here makes; prints "nanoseconds N"
 *   domu kernel ADDRESS             prints eight bytes of the kernel as /proc/kcore shows them: "kernel XXXXXXXXXXXXXXXX"
 *   domu ps                         prints each process: "ps PID PARENT STATE UID THREADS NAME"
 *
 * Each prints "done N" when it has. Word w of held page p is its own address xor 0x5a5a5a5a5a5a5a5a until somebody writes it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HELD ((volatile uint64_t *)0x40000000)
#define BACKING "/run/held"
#define PATTERN 0x5a5a5a5a5a5a5a5a
enum { PAGES = 16, PAGE = 4096, WORDS = PAGE / 8, MARK = 0x4fffff00, SET_GS = 0x1001 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ul + time.tv_nsec;
}

static volatile uint64_t *held(int flags)
{
	int fd = open(BACKING, O_RDWR | flags, 0600);
	if (fd < 0 || (flags && ftruncate(fd, PAGES * PAGE))) fail(BACKING);
	void *at = mmap((void *)HELD, PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at != (void *)HELD) fail("mmap");
	return HELD;
}

static volatile uint64_t *word(const char *page, const char *word)
{
	unsigned long p = strtoul(page, NULL, 0), w = strtoul(word, NULL, 0);
	if (p >= PAGES || w >= WORDS) exit(2);
	return held(0) + p * WORDS + w;
}

static void hold(void)
{
	volatile uint64_t *words = held(O_CREAT | O_TRUNC);
	int map = open("/proc/self/pagemap", O_RDONLY);
	for (int i = 0; i < PAGES * WORDS; i++) words[i] = (uintptr_t)&words[i] ^ PATTERN;
	/* The last byte of each page is RET, for "touch x". */
	for (int p = 0; p < PAGES; p++) ((volatile uint8_t *)words)[p * PAGE + PAGE - 1] = 0xc3;
	mlock((void *)words, PAGES * PAGE);
	printf("pid %d\nheld %p %d\n", getpid(), (void *)words, PAGES);
	for (int p = 0; p < PAGES; p++) {
		uint64_t entry = 0;
		if (pread(map, &entry, 8, ((uintptr_t)words / PAGE + p) * 8) != 8) fail("pagemap");
		printf("pfn %d %#lx\n", p, entry & ((1ul << 55) - 1));
	}
	printf("done 1\n");
	fflush(stdout);
	for (;;) pause();
}

static void touch(char how, const char *page, unsigned long times)
{
	volatile uint64_t *at = word(page, "0");
	uint64_t seen = 0;
	for (int p = 0; p < PAGES; p++) { /* no page fault later; of the page itself nothing is touched */
		if (HELD + p * WORDS != at) seen += HELD[p * WORDS];
	}
	extern char read_here[], write_here[];
	printf("rip %p\n", how == 'r' ? (void *)read_here : how == 'w' ? (void *)write_here : (char *)at + PAGE - 1);
	fflush(stdout);
	uint64_t began = now();
	for (unsigned long i = 0; i < times; i++) {
		if (how == 'r') asm volatile(".globl read_here\nread_here: mov (%1), %0" : "=r"(seen) : "r"(at) : "memory");
		else if (how == 'w') asm volatile(".globl write_here\nwrite_here: mov %0, (%1)" : : "r"(i), "r"(at) : "memory");
		else ((void (*)(void))((uintptr_t)at + PAGE - 1))();
	}
	printf("nanoseconds %lu\n", now() - began);
}

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

static void kernel(uint64_t at)
{
	Elf64_Ehdr head;
	int fd = open("/proc/kcore", O_RDONLY);
	if (fd < 0 || pread(fd, &head, sizeof head, 0) != sizeof head) fail("/proc/kcore");
	for (int i = 0; i < head.e_phnum; i++) {
		Elf64_Phdr part;
		uint8_t bytes[8];
		if (pread(fd, &part, sizeof part, head.e_phoff + i * sizeof part) != sizeof part) fail("/proc/kcore");
		if (part.p_type != PT_LOAD || at < part.p_vaddr || at - part.p_vaddr >= part.p_filesz) continue;
		if (pread(fd, bytes, 8, part.p_offset + (at - part.p_vaddr)) != 8) fail("/proc/kcore");
		printf("kernel ");
		for (int b = 0; b < 8; b++) printf("%02x", bytes[b]);
		printf("\n");
		return;
	}
	exit(3);
}

static void ps(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	while (proc && (entry = readdir(proc))) {
		char path[64], text[4096], name[64] = "", state = '?', *line;
		long pid = atol(entry->d_name), parent = 0, uid = 0, threads = 0;
		if (pid <= 0) continue;
		snprintf(path, sizeof path, "/proc/%ld/status", pid);
		int fd = open(path, O_RDONLY);
		ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
		if (fd >= 0) close(fd);
		if (length <= 0) continue; /* it has ended meanwhile */
		text[length] = 0;
		sscanf(text, "Name:\t%63[^\n]", name);
		if ((line = strstr(text, "\nState:\t"))) state = line[8];
		if ((line = strstr(text, "\nPPid:\t"))) parent = atol(line + 7);
		if ((line = strstr(text, "\nUid:\t"))) uid = atol(line + 6);
		if ((line = strstr(text, "\nThreads:\t"))) threads = atol(line + 10);
		printf("ps %ld %ld %c %ld %ld %s\n", pid, parent, state, uid, threads, name);
	}
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	unsigned long n = argc > 2 ? strtoul(argv[argc - 1], NULL, 0) : 1;
	if (!strcmp(verb, "hold")) {
		hold();
	} else if (!strcmp(verb, "see") && argc == 4) {
		printf("word %#lx\n", *word(argv[2], argv[3]));
		n = 1;
	} else if (!strcmp(verb, "set") && argc == 5) {
		*word(argv[2], argv[3]) = n;
		n = 1;
	} else if (!strcmp(verb, "touch") && argc == 5) {
		touch(argv[2][0], argv[3], n);
	} else if (!strcmp(verb, "cpuid") && argc == 5) {
		uint32_t out[4] = { 0 };
		for (unsigned long i = 0; i < n; i++) cpuid(strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0), out);
		printf("cpuid %#x %#x %#x %#x\n", out[0], out[1], out[2], out[3]);
	} else if (!strcmp(verb, "gsbase") && argc == 4) {
		for (unsigned long i = 0; i < n; i++)
			if (syscall(SYS_arch_prctl, SET_GS, strtoul(argv[2], NULL, 0) + i * PAGE)) fail("arch_prctl");
	} else if (!strcmp(verb, "msr") && argc == 5) {
		uint64_t value = strtoul(argv[3], NULL, 0);
		int fd = open("/dev/cpu/0/msr", O_RDWR);
		if (fd < 0) fail("/dev/cpu/0/msr");
		for (unsigned long i = 0; i < n; i++)
			if (pwrite(fd, &value, 8, strtoul(argv[2], NULL, 0)) != 8) fail("wrmsr");
	} else if (!strcmp(verb, "steps") && argc == 3) {
		uint64_t count = n;
		asm volatile("mov %1, %%eax; xor %%ecx, %%ecx; cpuid\n"
			     "mov %0, %%rsi\n"
			     "1: dec %%rsi; jnz 1b\n"
			     "mov %1, %%eax; xor %%ecx, %%ecx; cpuid"
			     : : "m"(count), "i"(MARK) : "rax", "rbx", "rcx", "rdx", "rsi", "memory");
	} else if (!strcmp(verb, "call") && argc == 3) {
		uint64_t interval[2], began = now();
		for (unsigned long i = 0; i < n; i++) syscall(SYS_sched_rr_get_interval, 0, interval);
		printf("nanoseconds %lu\n", now() - began);
	} else if (!strcmp(verb, "kernel") && argc == 3) {
		kernel(n);
		n = 1;
	} else if (!strcmp(verb, "ps")) {
		ps();
		n = 1;
	} else {
		fprintf(stderr, "domu: unknown order; see domu.c\n");
		return 2;
	}
	printf("done %lu\n", n);
	return 0;
}
