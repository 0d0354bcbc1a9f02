/* SPDX-License-Identifier: MIT
 *
 * nbdkit's functions in a form that Go can call. cgo cannot call variadic
 * functions, and cannot ask whether a weak function exists.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

bool
nbdkitgo_in_nbdkit (void)
{
  return nbdkit_error != NULL && nbdkit_debug != NULL &&
    nbdkit_set_error != NULL;
}

void
nbdkitgo_error (const char *s)
{
  nbdkit_error ("%s", s);
}

void
nbdkitgo_debug (const char *s)
{
  nbdkit_debug ("%s", s);
}

void
nbdkitgo_set_error (int err)
{
  nbdkit_set_error (err);
}

/* The next three return 0 or an errno, mostly of a failure nbdkit has reported. */
int
nbdkitgo_add_extent (void *extents, uint64_t offset, uint64_t length,
                     uint32_t type)
{
  if (extents == NULL || nbdkit_add_extent == NULL)
    return EINVAL;
  errno = 0;
  if (nbdkit_add_extent (extents, offset, length, type) == 0)
    return 0;
  return errno ? errno : EIO;
}

int
nbdkitgo_add_export (void *exports, const char *name, const char *description)
{
  if (exports == NULL || nbdkit_add_export == NULL)
    return EINVAL;
  errno = 0;
  if (nbdkit_add_export (exports, name, description) == 0)
    return 0;
  return errno ? errno : EIO;
}

int
nbdkitgo_use_default_export (void *exports)
{
  if (exports == NULL || nbdkit_use_default_export == NULL)
    return EINVAL;
  errno = 0;
  if (nbdkit_use_default_export (exports) == 0)
    return 0;
  return errno ? errno : EIO;
}

const char *
nbdkitgo_strdup_intern (const char *s)
{
  return nbdkit_strdup_intern ? nbdkit_strdup_intern (s) : NULL;
}

const char *
nbdkitgo_export_name (void)
{
  return nbdkit_export_name ? nbdkit_export_name () : NULL;
}

/* 1, 0, or -1 when there is no connection. */
int
nbdkitgo_is_tls (void)
{
  return nbdkit_is_tls ? nbdkit_is_tls () : -1;
}

int
nbdkitgo_peer_name (void *addr, uint32_t *len)
{
  socklen_t n = *len;
  int r;

  if (nbdkit_peer_name == NULL)
    return -1;
  r = nbdkit_peer_name (addr, &n);
  *len = n;
  return r;
}

/* which: 'p' process, 'u' user, 'g' group of a client on a Unix socket. */
int64_t
nbdkitgo_peer_id (int which)
{
  int64_t (*f) (void) = NULL;

  switch (which) {
  case 'p': f = nbdkit_peer_pid; break;
  case 'u': f = nbdkit_peer_uid; break;
  case 'g': f = nbdkit_peer_gid; break;
  }
  return f ? f () : -1;
}

void
nbdkitgo_shutdown (void)
{
  if (nbdkit_shutdown)
    nbdkit_shutdown ();
}

int
nbdkitgo_stdio_safe (void)
{
  return nbdkit_stdio_safe ? nbdkit_stdio_safe () : 1;
}

/* Returns a string for nbdkitgo_free_secret, or NULL (reported). */
char *
nbdkitgo_read_password (const char *value)
{
  char *password = NULL;

  if (nbdkit_read_password == NULL ||
      nbdkit_read_password (value, &password) == -1)
    return NULL;
  return password;
}

void
nbdkitgo_free_secret (char *s)
{
  if (s)
    explicit_bzero (s, strlen (s));
  free (s);
}
