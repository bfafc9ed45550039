// SPDX-License-Identifier: GPL-2.0
/*
 * What of a process's 1 GiB page can still be reached? Maps the same memory, waits
 * for a line from stdin, then reads every 4 KiB of it. Where SIGBUS comes, the signal
 * says how much is lost: go on after that.
 *
 *	reach <pid> <start of the mapping>-<its end>		(as in /proc/PID/maps)
 *
 * Prints "ready", then after the line "<bytes reached> <bytes lost> <signals>".
 *
 * Change it for what is counted; demo/database uses it.
 */
#include "common.h"
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf next;
static char *mem;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	char *addr = info->si_addr;

	(void)context;
	if (info->si_code != BUS_MCEERR_AR || addr < mem || addr >= mem + GIB)
		signal(sig, SIG_DFL);	/* not what is counted: let it end the program */
	else
		siglongjmp(next, info->si_addr_lsb);
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };
	volatile unsigned long at = 0, reached = 0, lost = 0, signals = 0;
	char path[128];
	int fd, lsb;

	if (argc != 3) {
		fprintf(stderr, "usage: reach <pid> <start>-<end>\n");
		return 2;
	}
	snprintf(path, sizeof(path), "/proc/%s/map_files/%s", argv[1], argv[2]);
	fd = open(path, O_RDWR);
	if (fd < 0) {
		perror(path);
		return 1;
	}
	mem = mmap(NULL, GIB, PROT_READ, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED || sigaction(SIGBUS, &act, NULL)) {
		perror("reach");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	getchar();

	lsb = sigsetjmp(next, 0);
	if (lsb) {
		signals++;
		lost += 1UL << lsb;
		at = (at & ~((1UL << lsb) - 1)) + (1UL << lsb);
	}
	for (; at < GIB; at += PAGE) {
		(void)*(volatile char *)(mem + at);
		reached += PAGE;
	}
	printf("%lu %lu %lu\n", reached, lost, signals);
	return 0;
}
