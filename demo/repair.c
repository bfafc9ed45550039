// SPDX-License-Identifier: GPL-2.0
/*
 * A program on a 1 GiB page that survives memory errors: it rebuilds the 4 KiB that
 * are lost and goes on. What to copy from it is between the two lines of stars.
 *
 * Its memory is 16 columns of 64 MiB; the last one holds the XOR of the others, so a
 * page can be rebuilt from the 15 that are in the same place of the other columns. It
 * overwrites pages in random order, while a child plays the hardware that fails.
 *
 * Without MADV_SPLIT an error costs all of the huge page, the parity as well: then
 * there is nothing to rebuild from, and the program says what it lost and ends.
 *
 * Change it for what a program should do when its memory fails. It
 * exits with 3 if what it lost cannot be rebuilt.
 */
#include "common.h"
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define WORDS	(PAGE / 8)
#define PAGES	(GIB / PAGE)
#define COLUMNS	16
#define COLUMN	(PAGES / COLUMNS)	/* pages in each */
#define PARITY	(PAGES - COLUMN)	/* the first page of the last column */
#define NOTED	64

static char *mem;
static uint64_t *page[PAGES];		/* where each page is now: all accesses go by this */
static uint32_t version[PARITY];	/* how often each page was overwritten */
static long signals[2], lost, rebuilt;	/* signals: action optional, action required; bytes */
static uint64_t slowest;

/* ************************************************************************* */

/*
 * The way back from the access that is being made. Volatile, as the memory that is
 * accessed has to be, or the compiler sees no reason to keep them in order.
 */
static sigjmp_buf *volatile recover;
static struct { char *addr; int lsb; } bad;
static char *noted[NOTED];			/* the last ones that were told */
static atomic_uint nr_noted;
static unsigned int nr_repaired;

/*
 * AR, action required: the instruction that was interrupted cannot go on, it needs
 * what is lost. A hugetlb mapping cannot have 4 KiB of something else in its middle, so
 * the page must get another address: leave the instruction, and let the access be
 * made again. AO, action optional: nobody needs it yet, so repair it when it suits.
 *
 * A SIGBUS that means something else, or that comes while there is no way back, must
 * end the program as it always did: the instruction is repeated, and gets the default.
 */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	char *addr = info->si_addr;
	bool ours = addr >= mem && addr < mem + GIB;

	(void)context;
	if (ours && info->si_code == BUS_MCEERR_AO) {
		signals[0]++;
		/* If it is too much, or too many are, the first access will tell. */
		if (info->si_addr_lsb == 12)
			noted[nr_noted++ % NOTED] = addr;
	} else if (ours && recover && info->si_code == BUS_MCEERR_AR) {
		signals[1]++;
		bad.addr = addr;
		bad.lsb = info->si_addr_lsb;
		siglongjmp(*recover, 1);
	} else {
		signal(sig, SIG_DFL);
	}
}

static void catch_memory_errors(void)
{
	struct sigaction act = {
		.sa_sigaction = on_sigbus,
		/*
		 * A jump out of the handler must not leave the signal blocked; an AO
		 * signal can come during any system call.
		 */
		.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART,
	};

	if (sigaction(SIGBUS, &act, NULL))
		die("sigaction");
	/* Tell this program of errors at once, not when it gets there. */
	if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0))
		die("PR_MCE_KILL");
}

/*
 * Rebuild a page elsewhere, and only then let it be found there. Runs outside the
 * handler, where everything may be called. Another error in the same stripe now is one
 * more than parity can bear: recover is not set, and SIGBUS ends the program.
 */
static void rebuild(size_t n)
{
	uint64_t *fresh;

	if ((char *)page[n] != mem + n * PAGE)
		return;		/* told twice: by an AO and by an AR signal */
	fresh = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fresh == MAP_FAILED)
		die("no memory for a page");
	for (size_t other = n % COLUMN; other < PAGES; other += COLUMN)
		for (size_t w = 0; other != n && w < WORDS; w++)
			fresh[w] ^= page[other][w];
	page[n] = fresh;
	lost += PAGE;
	rebuilt += PAGE;
}

static bool repair(void)
{
	uint64_t start = now();

	recover = NULL;
	/* The signal says how much is gone: 12 bits, 4 KiB, are all this program can rebuild. */
	if (bad.lsb != 12) {
		lost += 1L << bad.lsb;
		return false;
	}
	rebuild((bad.addr - mem) / PAGE);
	if (now() - start > slowest)
		slowest = now() - start;
	return true;
}

static void repair_noted(void)
{
	while (nr_repaired != nr_noted)
		rebuild((noted[nr_repaired++ % NOTED] - mem) / PAGE);
}

static uint64_t content(size_t n, size_t w)
{
	return ((uint64_t)version[n] << 32 | n) * 0x9e3779b97f4a7c15 + w * 0xbf58476d1ce4e5b9;
}

/*
 * Make an access, again and again until all that it needs is there. The access must be
 * a function of its own: a compiler does not expect a jump from the middle of one back
 * to here, and what is in this one's variables would not be safe.
 */
static bool with_repair(void (*access)(size_t), size_t n)
{
	sigjmp_buf again;

	if (sigsetjmp(again, 0) && !repair())
		return false;
	recover = &again;
	access(n);
	recover = NULL;
	return true;
}

/*
 * Overwrite a page, and keep the parity right. It can simply be done again after a repair:
 * whichever of the two pages is lost between any two accesses, rebuild() makes it what
 * it has to be, and what was stored already makes no difference the second time.
 * With more threads each stripe would need a lock, and recover be thread-local.
 */
static __attribute__((noinline)) void overwrite(size_t n)
{
	size_t p = PARITY + n % COLUMN;

	for (size_t w = 0; w < WORDS; w++) {
		volatile uint64_t *data = page[n] + w, *parity = page[p] + w;
		uint64_t change = *data ^ content(n, w);

		*data = content(n, w);
		*parity ^= change;
	}
}

/* ************************************************************************* */

static size_t wrong;

/* Reads the parity as well: an error that nobody has found yet is found here. */
static __attribute__((noinline)) void verify(size_t stripe)
{
	uint64_t sum[WORDS] = { 0 };

	for (size_t n = stripe; n < PAGES; n += COLUMN) {
		for (size_t w = 0; w < WORDS; w++) {
			uint64_t word = *(volatile uint64_t *)(page[n] + w);

			sum[w] ^= word;
			if (n < PARITY && word != content(n, w))
				wrong++;
		}
	}
	for (size_t w = 0; w < WORDS; w++)
		wrong += sum[w] != 0;
}

/* The hardware's part: someone else finds the error first, or the program does. */
static void fail_page(size_t n, bool early)
{
	pid_t child;
	int status;

	if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, early ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0))
		die("PR_MCE_KILL");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		/* Who injects an error is told at once. */
		signal(SIGBUS, SIG_DFL);
		_exit(madvise(mem + n * PAGE, PAGE, MADV_HWPOISON) ? errno : 0);
	}
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) && status)
		errno = WIFEXITED(status) ? WEXITSTATUS(status) : 0, die("MADV_HWPOISON");
}

static const char *bytes(long n)
{
	static char text[4][32];
	static int i;
	char *t = text[i++ % 4];

	if (n && !(n % GIB))
		sprintf(t, "%ld GiB", n / (long)GIB);
	else
		sprintf(t, "%ld KiB", n / 1024);
	return t;
}

int main(int argc, char **argv)
{
	int rounds = 20000, errors = 8, failed = 0, done = 0, c, fd;
	const char *file = NULL;
	bool alive = true;
	struct utsname name;
	FILE *out = stdout;

	while ((c = getopt(argc, argv, "n:e:o:")) != -1) {
		switch (c) {
		case 'n': rounds = atoi(optarg); break;
		case 'e': errors = atoi(optarg); break;
		case 'o': file = optarg; break;
		default: rounds = 0;
		}
	}
	if (optind < argc || rounds < 1 || errors < 1 || errors > rounds) {
		fprintf(stderr, "usage: repair [-n pages to overwrite] [-e errors] [-o result file]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);

	fd = memfd_create("self-repairing memory", MFD_HUGETLB | MFD_HUGE_1GB);
	if (fd < 0 || ftruncate(fd, GIB))
		die("memfd");
	mem = mmap(NULL, GIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		die("1 GiB of memory (hugepagesz=1G hugepages=1 on the kernel's command line?)");
	/* The one call that makes an error cost 4 KiB. An older kernel says EINVAL. */
	if (madvise(mem, GIB, MADV_SPLIT))
		printf("no MADV_SPLIT here: an error will cost 1 GiB\n");
	catch_memory_errors();

	for (size_t n = 0; n < PAGES; n++)
		page[n] = (void *)(mem + n * PAGE);
	for (size_t n = 0; n < PARITY && alive; n++)
		alive = with_repair(overwrite, n);

	/* What fails is what is overwritten next, or its parity, or something else. */
	srandom(1);
	for (int r = 0; r < rounds && alive; r++) {
		size_t n = random() % PARITY, hit;

		if (r % (rounds / errors) == 0 && failed < errors) {
			hit = failed % 3 == 0 ? n : failed % 3 == 1 ? PARITY + n % COLUMN :
			      (size_t)random() % PAGES;
			fail_page(hit, failed % 2);
			printf("page %zu failed\n", hit);
			failed++;
		}
		repair_noted();
		version[n]++;
		alive = with_repair(overwrite, n);
		done += alive;
	}
	repair_noted();
	if (alive)
		printf("verifying every word\n");
	for (size_t stripe = 0; stripe < COLUMN && alive; stripe++)
		alive = with_repair(verify, stripe);

	if (file)
		out = fopen(file, "w");
	if (!out || uname(&name))
		die("%s", file);
	fprintf(out, "kernel\t%s\n", name.release);
	fprintf(out, "memory\t%s, one page\n", bytes(GIB));
	fprintf(out, "memory errors\t%d\n", failed);
	fprintf(out, "signals: action required, optional\t%ld, %ld\n", signals[1], signals[0]);
	fprintf(out, "lost, as the signals said\t%s\n", bytes(lost));
	fprintf(out, "rebuilt from parity\t%s\n", bytes(rebuilt));
	fprintf(out, "  one repair took at most\t");
	fprintf(out, slowest ? "%.2f ms\n" : "-\n", slowest / 1e6);
	fprintf(out, "pages overwritten until the end\t%d of %d\n", done, rounds);
	fprintf(out, "mapped by 2 MiB entries at the end\t%s\n", bytes(number_in("/proc/self/smaps", "HugetlbPmdMapped:") * 1024));
	fprintf(out, "mapped by 4 KiB entries at the end\t%s\n", bytes(number_in("/proc/self/smaps", "HugetlbPteMapped:") * 1024));
	fprintf(out, "HardwareCorrupted\t%lu KiB\n", number_in("/proc/meminfo", "HardwareCorrupted:"));
	if (alive)
		fprintf(out, "wrong words at the end\t%zu of %lu\n", wrong, PAGES * WORDS);
	else
		fprintf(out, "wrong words at the end\tall are lost\n");
	if (fclose(out))
		die("%s", file);
	if (!alive)
		printf("an error took %s, the parity as well: nothing is left to rebuild from\n", bytes(lost));
	return alive && !wrong ? 0 : 3;
}
