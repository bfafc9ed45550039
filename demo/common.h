/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the demo's programs have in common. Include it before everything else, for
 * _GNU_SOURCE to be in effect.
 *
 * Change it for what more than one of them needs.
 */
#ifndef DEMO_COMMON_H
#define DEMO_COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What the installed headers may be too old for. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SPLIT
#define MADV_SPLIT 26
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef PAGEMAP_SCAN			/* from linux/fs.h of 6.7 */
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_WRITTEN (1 << 1)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
struct page_region {
	uint64_t start, end, categories;
};

struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#endif

#define PAGE	4096UL
#define GIB	(1UL << 30)
#define NSEC	1000000000ULL

/* Says why, with errno's text unless that is 0; other threads may go on meanwhile. */
static inline __attribute__((format(printf, 1, 2), noreturn)) void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, err ? ": %s\n" : "\n", strerror(err));
	va_end(ap);
	_exit(1);
}

static inline uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NSEC + t.tv_nsec;
}

static inline int by_value(const void *a, const void *b)	/* for qsort() of uint64_t */
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static inline void start_thread(pthread_t *thread, void *(*run)(void *), void *arg)
{
	errno = pthread_create(thread, NULL, run, arg);
	if (errno)
		die("thread");
}

/* The number after a name at the start of a line; the sum if there are many such lines. */
static inline uint64_t number_in(const char *file, const char *name)
{
	char line[512];
	uint64_t value = 0;
	FILE *f = fopen(file, "r");

	if (!f)
		die("%s", file);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			value += strtoull(line + strlen(name), NULL, 10);
	fclose(f);
	return value;
}

static inline void send_all(int fd, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			die("send");
		if (n > 0)
			buf = (const char *)buf + n, len -= n;
	}
}

/* false: the other side has closed the connection between two frames */
static inline bool receive(int fd, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = recv(fd, (char *)buf + done, len - done, MSG_WAITALL);

		if (n < 0 && errno != EINTR)
			die("recv");
		if (!n && !done)
			return false;
		if (!n)
			errno = 0, die("the connection ended within a frame");
		if (n > 0)
			done += n;
	}
	return true;
}

/*
 * When a link that is busy until @due will have sent @bytes more. What a busy machine
 * did not send in time may be made up for, up to 100 ms.
 */
static inline uint64_t link_free(uint64_t due, size_t bytes, int megabits)
{
	uint64_t earliest = now() - NSEC / 10;

	return (due > earliest ? due : earliest) + bytes * 8 * 1000 / megabits;
}

static inline int open_uffd(char *mem, size_t size, uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = { .range = { (uintptr_t)mem, size }, .mode = mode };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		die("userfaultfd");
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		die("UFFDIO_REGISTER");
	return fd;
}

/* Have all of a huge page mapped by one entry again. */
static inline void collapse_gib(char *mem)
{
	while (madvise(mem, GIB, MADV_COLLAPSE))
		if (errno != EAGAIN && errno != EBUSY)
			die("MADV_COLLAPSE");
}

#endif
