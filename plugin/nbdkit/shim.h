/* SPDX-License-Identifier: MIT
 *
 * Declarations that every C file of the binding shares.
 *
 * nbdkit's functions are weak references.  In a plugin they are resolved
 * against nbdkit when it loads the .so.  In an ordinary program (go test, or a
 * command that imports the binding indirectly) they are NULL, so each caller
 * must check first.
 */
#ifndef NBDKITGO_SHIM_H
#define NBDKITGO_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#pragma weak nbdkit_add_export
#pragma weak nbdkit_add_extent
#pragma weak nbdkit_debug
#pragma weak nbdkit_error
#pragma weak nbdkit_export_name
#pragma weak nbdkit_is_tls
#pragma weak nbdkit_peer_gid
#pragma weak nbdkit_peer_name
#pragma weak nbdkit_peer_pid
#pragma weak nbdkit_peer_uid
#pragma weak nbdkit_read_password
#pragma weak nbdkit_set_error
#pragma weak nbdkit_shutdown
#pragma weak nbdkit_stdio_safe
#pragma weak nbdkit_strdup_intern
#pragma weak nbdkit_use_default_export

/* Optional callbacks of a plugin, as bits of the record 'c' of a description.
 * A NULL pointer means "absent" to nbdkit, so these must be known before
 * plugin_init returns.
 */
#define NBDKITGO_HAS_LIST_EXPORTS   1
#define NBDKITGO_HAS_DEFAULT_EXPORT 2

/* A growing run of bytes, malloc'd. */
struct nbdkitgo_bytes {
  char *ptr;
  size_t len;
};

/* A parameter of the command line, or of a filter, in the order given. */
struct nbdkitgo_param {
  char *key;
  char *value;
};

/* Only plugin_init is visible from outside. */
#pragma GCC visibility push(hidden)

/* state.c: what C keeps for Go, since C runs before Go. */
extern const char *nbdkitgo_cwd (void);
extern int nbdkitgo_param_append (const char *key, const char *value);
extern size_t nbdkitgo_param_count (void);
extern const struct nbdkitgo_param *nbdkitgo_param_at (size_t i);

/* callbacks.c: make the struct that plugin_init returns. */
extern struct nbdkit_plugin *nbdkitgo_make_plugin (const void *description,
                                                   size_t len, bool late);

/* loader.c: the callbacks of a plugin whose Go runtime starts late. */
extern void nbdkitgo_late_callbacks (struct nbdkit_plugin *plugin);
extern bool nbdkitgo_is_late (void);
extern void nbdkitgo_runtime_start (void);
extern struct nbdkit_plugin *nbdkitgo_weak_plugin_init (void);
/* entry.c: the plugin_init that a main package may replace by its own. */
extern struct nbdkit_plugin *nbdkitgo_own_plugin_init (void);

/* child.c: run fn in a short-lived child process.  out gets all that fn writes to
 * its descriptor.
 *
 * Returns 0 when fn returned 0, and -1 when it returned something else (it has
 * reported why) or when the child was killed, crashed or exited on its own
 * (reported here, with what as the child's name).
 */
extern int nbdkitgo_run_child (const char *what, int (*fn) (int fd),
                               bool keep_stdout, bool keep_stdin,
                               struct nbdkitgo_bytes *out);
extern void nbdkitgo_bytes_free (struct nbdkitgo_bytes *b);

/* A child passes open descriptors with nbdkitgo_pass on its own; afterwards
 * nbdkitgo_passed returns them, or -1 after the last.  They are close-on-exec.
 */
#define NBDKITGO_PASSED 16
extern int nbdkitgo_pass (int sock, int fd, const void *bytes, size_t len);
extern int nbdkitgo_passed (size_t i);

/* api.c: nbdkit's functions in a form that cgo can call. */
extern bool nbdkitgo_in_nbdkit (void);
extern void nbdkitgo_error (const char *s);
extern void nbdkitgo_debug (const char *s);
extern void nbdkitgo_set_error (int err);
extern int nbdkitgo_add_extent (void *extents, uint64_t offset,
                                uint64_t length, uint32_t type);
extern int nbdkitgo_add_export (void *exports, const char *name,
                                const char *description);
extern int nbdkitgo_use_default_export (void *exports);
extern const char *nbdkitgo_strdup_intern (const char *s);
extern const char *nbdkitgo_export_name (void);
extern int nbdkitgo_is_tls (void);
extern int nbdkitgo_peer_name (void *addr, uint32_t *len);
extern int64_t nbdkitgo_peer_id (int which);
extern void nbdkitgo_shutdown (void);
extern int nbdkitgo_stdio_safe (void);
extern char *nbdkitgo_read_password (const char *value);
extern void nbdkitgo_free_secret (char *s);

#pragma GCC visibility pop

#endif
