/* SPDX-License-Identifier: MIT
 *
 * The callbacks that nbdkit calls in C, which call Go, and the struct that
 * names them.  A request costs one call from C to Go and no call back.
 *
 * Go answers 0, a positive errno, or -1 for a failure without an errno.
 * For the last one nbdkit uses EIO, unless the plugin has called SetError.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"
#include "_cgo_export.h"

static inline int
answer (int r)
{
  if (__builtin_expect (r == 0, 1))
    return 0;
  if (r > 0)
    nbdkit_set_error (r);
  return -1;
}

/* ---- the plugin as a whole, with Go running since nbdkit opened it ---- */

static void
early_load (void)
{
  if (nbdkitgoLoad () != 0)     /* it has panicked */
    exit (EXIT_FAILURE);
}

static void
early_unload (void)
{
  nbdkitgoUnload ();
}

static void
early_dump_plugin (void)
{
  fflush (stdout);              /* Go writes past stdio's buffer */
  if (nbdkitgoDumpPlugin (false) != 0)
    exit (EXIT_FAILURE);
}

static int
early_config (const char *key, const char *value)
{
  return nbdkitgoConfig ((char *) key, (char *) value) == 0 ? 0 : -1;
}

static int
early_config_complete (void)
{
  return nbdkitgoConfigComplete () == 0 ? 0 : -1;
}

static int
early_get_ready (void)
{
  return nbdkitgoGetReady () == 0 ? 0 : -1;
}

/* Goroutines have small stacks, so a signal that arrives while one runs must
 * be handled on the thread's alternate stack.  Go arranges this for handlers
 * that exist when it starts.  With the early start nbdkit's come later.
 */
static void
signals_onto_alternate_stack (void)
{
  static const int sigs[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };
  struct sigaction sa;

  for (size_t i = 0; i < sizeof sigs / sizeof sigs[0]; ++i) {
    if (sigaction (sigs[i], NULL, &sa) == -1 ||
        sa.sa_handler == SIG_DFL || sa.sa_handler == SIG_IGN ||
        (sa.sa_flags & SA_ONSTACK))
      continue;
    sa.sa_flags |= SA_ONSTACK;
    sigaction (sigs[i], &sa, NULL);
  }
}

static int
early_after_fork (void)
{
  signals_onto_alternate_stack ();
  return nbdkitgoAfterFork () == 0 ? 0 : -1;
}

static void
early_cleanup (void)
{
  nbdkitgoCleanup ();
}

/* ---- connections ---- */

static int
do_preconnect (int readonly)
{
  return nbdkitgoPreConnect (readonly) == 0 ? 0 : -1;
}

static int
do_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  return answer (nbdkitgoListExports (readonly, is_tls, exports));
}

static const char *
do_default_export (int readonly, int is_tls)
{
  return nbdkitgoDefaultExport (readonly, is_tls);
}

static void *
do_open (int readonly)
{
  uintptr_t handle = 0;

  if (answer (nbdkitgoOpen (readonly, &handle)) == -1)
    return NULL;
  return (void *) handle;
}

static void
do_close (void *handle)
{
  nbdkitgoClose ((uintptr_t) handle);
}

static const char *
do_export_description (void *handle)
{
  return nbdkitgoExportDescription ((uintptr_t) handle);
}

static int64_t
do_get_size (void *handle)
{
  return nbdkitgoGetSize ((uintptr_t) handle);
}

static int
do_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
               uint32_t *maximum)
{
  return answer (nbdkitgoBlockSize ((uintptr_t) handle, minimum, preferred,
                                    maximum));
}

#define CAN(c_name, go_name)                    \
  static int                                    \
  c_name (void *handle)                         \
  {                                             \
    return go_name ((uintptr_t) handle);        \
  }
CAN (do_can_write, nbdkitgoCanWrite)
CAN (do_can_flush, nbdkitgoCanFlush)
CAN (do_is_rotational, nbdkitgoIsRotational)
CAN (do_can_trim, nbdkitgoCanTrim)
CAN (do_can_zero, nbdkitgoCanZero)
CAN (do_can_fast_zero, nbdkitgoCanFastZero)
CAN (do_can_extents, nbdkitgoCanExtents)
CAN (do_can_fua, nbdkitgoCanFUA)
CAN (do_can_multi_conn, nbdkitgoCanMultiConn)
CAN (do_can_cache, nbdkitgoCanCache)
#undef CAN

/* ---- requests ---- */

static int
do_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
          uint32_t flags)
{
  return answer (nbdkitgoPRead ((uintptr_t) handle, buf, count, offset, flags));
}

static int
do_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
           uint32_t flags)
{
  return answer (nbdkitgoPWrite ((uintptr_t) handle, (void *) buf, count,
                                 offset, flags));
}

static int
do_flush (void *handle, uint32_t flags)
{
  return answer (nbdkitgoFlush ((uintptr_t) handle, flags));
}

static int
do_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return answer (nbdkitgoTrim ((uintptr_t) handle, count, offset, flags));
}

static int
do_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return answer (nbdkitgoZero ((uintptr_t) handle, count, offset, flags));
}

static int
do_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
            struct nbdkit_extents *extents)
{
  return answer (nbdkitgoExtents ((uintptr_t) handle, count, offset, flags,
                                  extents));
}

static int
do_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return answer (nbdkitgoCache ((uintptr_t) handle, count, offset, flags));
}

/* ---- the struct ---- */

static struct nbdkit_plugin plugin = {
  ._struct_size = sizeof (struct nbdkit_plugin),
  ._api_version = NBDKIT_API_VERSION,
  ._thread_model = NBDKIT_THREAD_MODEL_PARALLEL,

  .load = early_load,
  .unload = early_unload,
  .dump_plugin = early_dump_plugin,
  .config = early_config,
  .config_complete = early_config_complete,
  .get_ready = early_get_ready,
  .after_fork = early_after_fork,
  .cleanup = early_cleanup,

  .preconnect = do_preconnect,
  .open = do_open,
  .close = do_close,
  .export_description = do_export_description,
  .get_size = do_get_size,
  .block_size = do_block_size,
  .can_write = do_can_write,
  .can_flush = do_can_flush,
  .is_rotational = do_is_rotational,
  .can_trim = do_can_trim,
  .can_zero = do_can_zero,
  .can_fast_zero = do_can_fast_zero,
  .can_extents = do_can_extents,
  .can_fua = do_can_fua,
  .can_multi_conn = do_can_multi_conn,
  .can_cache = do_can_cache,

  .pread = do_pread,
  .pwrite = do_pwrite,
  .flush = do_flush,
  .trim = do_trim,
  .zero = do_zero,
  .extents = do_extents,
  .cache = do_cache,

  .errno_is_preserved = 0,      /* answer() tells nbdkit what it was */
};

/* A description is a run of records: a letter, a length (uint32_t, this
 * machine's byte order), that many bytes.  description.go writes it.
 *
 * n name, l longname, v version, d description, h config_help, m magic key:
 * strings.  t thread model, c optional callbacks: uint32_t.
 */
struct nbdkit_plugin *
nbdkitgo_make_plugin (const void *description, size_t len, bool late)
{
  const char *p = description, *end = p + len;

  if (late) {
    plugin.load = NULL;
    plugin.config_complete = NULL;
    nbdkitgo_late_callbacks (&plugin);
  }

  while (end - p >= 5) {
    const char tag = *p++;
    uint32_t n, u = 0;
    char *s;

    memcpy (&n, p, sizeof n);
    p += sizeof n;
    if (n > end - p)
      break;
    s = strndup (p, n);         /* never freed: nbdkit keeps it */
    if (s == NULL)
      break;
    if (n == sizeof u)
      memcpy (&u, p, sizeof u);
    p += n;

    switch (tag) {
    case 'n': plugin.name = s; break;
    case 'l': plugin.longname = s; break;
    case 'v': plugin.version = s; break;
    case 'd': plugin.description = s; break;
    case 'h': plugin.config_help = s; break;
    case 'm': plugin.magic_config_key = s; break;
    case 't':
      free (s);
      plugin._thread_model = u;
      break;
    case 'c':
      free (s);
      if (u & NBDKITGO_HAS_LIST_EXPORTS)
        plugin.list_exports = do_list_exports;
      if (u & NBDKITGO_HAS_DEFAULT_EXPORT)
        plugin.default_export = do_default_export;
      break;
    default:
      free (s);
    }
  }

  if (p != end || plugin.name == NULL)
    return NULL;
  return &plugin;
}
