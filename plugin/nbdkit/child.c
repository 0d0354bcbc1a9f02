/* SPDX-License-Identifier: MIT
 *
 * Short-lived children.  Before nbdkit has forked, Go runs only in these
 * processes: the Go runtime does not survive fork, so it is started in a child,
 * which answers over a socket and ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

/* The last byte says how the child ended: SIGCHLD may be ignored,
 * and then waitpid cannot.
 */
enum { CHILD_OK = 'k', CHILD_FAILED = 'f' };

static void __attribute__ ((noreturn))
child (int (*fn) (int fd), int fd, pid_t parent, bool keep_stdout,
       bool keep_stdin)
{
  char end;
  int null;
  ssize_t r;

  /* If nbdkit ends in any way, the child ends too. */
  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (EXIT_FAILURE);

  /* With nbdkit -s, 0 and 1 are the client's socket. */
  null = open ("/dev/null", O_RDWR | O_CLOEXEC);
  if (null == -1) {
    nbdkit_error ("/dev/null: %s", strerror (errno));
    end = CHILD_FAILED;
    goto out;
  }
  if (!keep_stdin)
    dup2 (null, STDIN_FILENO);
  if (!keep_stdout)
    dup2 (null, STDOUT_FILENO);
  if (null > STDERR_FILENO)
    close (null);

  end = fn (fd) == 0 ? CHILD_OK : CHILD_FAILED;
 out:
  fflush (NULL);
  do
    r = write (fd, &end, 1);
  while (r == -1 && errno == EINTR);
  _exit (end == CHILD_OK ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* Descriptors that a child has passed, in the order of their passing. */
static int passed[NBDKITGO_PASSED];
static size_t n_passed;

int
nbdkitgo_passed (size_t i)
{
  return i < n_passed ? passed[i] : -1;
}

/* Sends the bytes, and with them a descriptor.  Returns 0, or -1 and errno. */
int
nbdkitgo_pass (int sock, int fd, const void *bytes, size_t len)
{
  union { struct cmsghdr align; char buf[CMSG_SPACE (sizeof (int))]; } u = { };
  struct iovec iov = { (void *) bytes, len };
  struct msghdr msg = {
    .msg_iov = &iov, .msg_iovlen = 1,
    .msg_control = u.buf, .msg_controllen = sizeof u.buf,
  };
  struct cmsghdr *c = CMSG_FIRSTHDR (&msg);
  ssize_t r;

  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN (sizeof (int));
  memcpy (CMSG_DATA (c), &fd, sizeof fd);
  do
    r = sendmsg (sock, &msg, MSG_NOSIGNAL);
  while (r == -1 && errno == EINTR);
  if (r >= 0 && (size_t) r != len) {
    errno = EMSGSIZE;           /* a few bytes: it does not happen */
    return -1;
  }
  return r == -1 ? -1 : 0;
}

/* read, which also receives the descriptors that are passed. */
static ssize_t
receive (int sock, void *p, size_t len)
{
  union { struct cmsghdr align; char buf[CMSG_SPACE (8 * sizeof (int))]; } u;
  struct iovec iov = { p, len };
  struct msghdr msg = {
    .msg_iov = &iov, .msg_iovlen = 1,
    .msg_control = u.buf, .msg_controllen = sizeof u.buf,
  };
  ssize_t r = recvmsg (sock, &msg, MSG_CMSG_CLOEXEC);

  if (r == -1)
    return -1;
  for (struct cmsghdr *c = CMSG_FIRSTHDR (&msg); c; c = CMSG_NXTHDR (&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
      continue;
    for (size_t at = CMSG_LEN (0); at + sizeof (int) <= c->cmsg_len;
         at += sizeof (int)) {
      int fd;

      memcpy (&fd, (char *) c + at, sizeof fd);
      if (n_passed < NBDKITGO_PASSED)
        passed[n_passed++] = fd;
      else
        close (fd);
    }
  }
  return r;
}

/* Reads until the child's end is closed.  Returns 0 or an errno. */
static int
read_all (int fd, struct nbdkitgo_bytes *out)
{
  size_t alloc = 0;
  ssize_t r;
  char *p;

  for (;;) {
    if (out->len == alloc) {
      /* Not realloc: it may leave a copy of a secret behind. */
      alloc = alloc ? 2 * alloc : 4096;
      p = malloc (alloc);
      if (p == NULL)
        return ENOMEM;
      if (out->len > 0)
        memcpy (p, out->ptr, out->len);
      if (out->ptr)
        explicit_bzero (out->ptr, out->len);
      free (out->ptr);
      out->ptr = p;
    }
    r = receive (fd, out->ptr + out->len, alloc - out->len);
    if (r == 0)
      return 0;
    if (r > 0)
      out->len += r;
    else if (errno != EINTR)
      return errno;
  }
}

void
nbdkitgo_bytes_free (struct nbdkitgo_bytes *b)
{
  if (b->ptr)
    explicit_bzero (b->ptr, b->len);
  free (b->ptr);
  b->ptr = NULL;
  b->len = 0;
}

int
nbdkitgo_run_child (const char *what, int (*fn) (int fd), bool keep_stdout,
                    bool keep_stdin, struct nbdkitgo_bytes *out)
{
  int fds[2], status, err;
  pid_t parent = getpid (), pid, r;

  /* A socket and no pipe: descriptors pass through it, too. */
  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1) {
    nbdkit_error ("%s: socketpair: %s", what, strerror (errno));
    return -1;
  }

  fflush (NULL);                /* or it is printed twice */
  pid = fork ();
  if (pid == -1) {
    nbdkit_error ("%s: fork: %s", what, strerror (errno));
    close (fds[0]);
    close (fds[1]);
    return -1;
  }
  if (pid == 0) {
    close (fds[0]);
    child (fn, fds[1], parent, keep_stdout, keep_stdin);
  }

  close (fds[1]);
  err = read_all (fds[0], out);
  close (fds[0]);               /* a child still writing gets SIGPIPE */
  if (err)
    kill (pid, SIGKILL);
  do
    r = waitpid (pid, &status, 0);
  while (r == -1 && errno == EINTR);

  if (err) {
    nbdkit_error ("%s: reading from the child: %s", what, strerror (err));
    return -1;
  }
  if (out->len > 0 && out->ptr[out->len - 1] == CHILD_OK &&
      (r == -1 || (WIFEXITED (status) && WEXITSTATUS (status) == 0))) {
    out->len--;
    return 0;
  }
  if (out->len > 0 && out->ptr[out->len - 1] == CHILD_FAILED &&
      (r == -1 || WIFEXITED (status)))
    return -1;                  /* it has said why */

  if (r == -1)
    nbdkit_error ("%s ended without a result", what);
  else if (WIFSIGNALED (status))
    nbdkit_error ("%s was killed by signal %d (%s)",
                  what, WTERMSIG (status), strsignal (WTERMSIG (status)));
  else
    nbdkit_error ("%s ended early with exit status %d "
                  "(a fatal error in Go, or a call of os.Exit)",
                  what, WEXITSTATUS (status));
  return -1;
}
