/*
 * outbox FILE...    hands files to the host through the memory of an ivshmem device (1af4:1110)
 *
 * Each file: its length (8 bytes), its name (56 bytes), its content; the next one is at the next multiple of 4096. A length of zero ends them.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER = 64, NAME = 56, PAGE = 4096 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int has(const char *device, const char *file, const char *value)
{
	char path[300], text[16] = "";
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, file);
	int fd = open(path, O_RDONLY);
	if (fd < 0) return 0;
	if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
	close(fd);
	return !strncmp(text, value, strlen(value));
}

int main(int argc, char **argv)
{
	DIR *devices = opendir("/sys/bus/pci/devices");
	struct dirent *entry;
	char path[300] = "";
	while (devices && (entry = readdir(devices)))
		if (has(entry->d_name, "vendor", "0x1af4") && has(entry->d_name, "device", "0x1110"))
			snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource2", entry->d_name);
	int memory = open(path, O_RDWR);
	struct stat room;
	if (memory < 0 || fstat(memory, &room)) fail("ivshmem");
	char *at = mmap(NULL, room.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0), *end = at + room.st_size;
	if (at == MAP_FAILED) fail("mmap");
	for (int i = 1; i < argc; i++) {
		const char *slash = strrchr(argv[i], '/'), *name = slash ? slash + 1 : argv[i];
		int file = open(argv[i], O_RDONLY);
		struct stat status;
		if (file < 0 || fstat(file, &status)) fail(argv[i]);
		uint64_t length = status.st_size;
		if (length > (uint64_t)(end - at - HEADER - PAGE)) {
			fprintf(stderr, "%s: no room\n", argv[i]);
			return 1;
		}
		memset(at, 0, HEADER);
		strncpy(at + 8, name, NAME - 1);
		for (uint64_t done = 0; done < length;) {
			ssize_t got = read(file, at + HEADER + done, length - done);
			if (got <= 0) fail(argv[i]);
			done += got;
		}
		memcpy(at, &length, 8);
		at += (HEADER + length + PAGE - 1) / PAGE * PAGE;
		close(file);
	}
	memset(at, 0, 8);
	return 0;
}
