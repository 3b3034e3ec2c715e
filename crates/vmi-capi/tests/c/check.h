/* What the test programs share: checks that say where they failed. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vmi.h>

static int failures, checks;

#define CHECK(condition) check(!!(condition), #condition, __FILE__, __LINE__)

static inline int check(int good, const char *text, const char *file, int line)
{
	__atomic_add_fetch(&checks, 1, __ATOMIC_RELAXED);
	if (!good) {
		__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);
		fprintf(stderr, "%s:%d: not so: %s\n", file, line, text);
	}
	return good;
}

/* Checks that a call answers `status`, and that there is an error object exactly if that is an error. */
#define ANSWERS(status, call)                                                                                                   \
	do {                                                                                                                    \
		vmi_error *error = (vmi_error *)1;                                                                              \
		vmi_status answer_ = call;                                                                                      \
		answers(status, answer_, error, #call, __FILE__, __LINE__);                                                     \
	} while (0)

static inline void answers(vmi_status expected, vmi_status status, vmi_error *error, const char *text, const char *file, int line)
{
	int is_error = status != VMI_STATUS_OK && status != VMI_STATUS_END;

	__atomic_add_fetch(&checks, 1, __ATOMIC_RELAXED);
	if (status != expected || (error != NULL) != is_error || (error && vmi_error_status(error) != status) ||
	    (error && !*vmi_error_message(error))) {
		__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);
		fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, text, vmi_status_name(status), error ? vmi_error_message(error) : "");
	}
	vmi_error_close(error);
}

static inline int finish(const char *name)
{
	CHECK(vmi_open_handles() == 0);
	printf("%s: %d checks, %d failed\n", name, checks, failures);
	return failures != 0;
}

#endif
