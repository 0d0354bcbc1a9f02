/* SPDX-License-Identifier: MIT
 *
 * A plugin in C with the callbacks that upstream's Go binding knows, and none
 * of the others; and with --dump-plugin it shows how nbdkit parses sizes and
 * switches.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static int
plain_config (const char *key, const char *value)
{
  if (key[0] == 's')
    printf ("parsed=%" PRIi64 "\n", nbdkit_parse_size (value));
  else
    printf ("parsed=%d\n", nbdkit_parse_bool (value));
  return 0;
}

static void *plain_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t plain_get_size (void *h) { return 1 << 20; }
static int plain_pread (void *h, void *buf, uint32_t count, uint64_t offset,
                        uint32_t flags)
{ memset (buf, 0, count); return 0; }
static int plain_pwrite (void *h, const void *buf, uint32_t count,
                         uint64_t offset, uint32_t flags) { return 0; }
#ifdef FLUSH
static int plain_flush (void *h, uint32_t flags) { return 0; }
#endif
#ifdef TRIM
static int plain_trim (void *h, uint32_t count, uint64_t offset,
                       uint32_t flags) { return 0; }
#endif
#ifdef ZERO
static int plain_zero (void *h, uint32_t count, uint64_t offset,
                       uint32_t flags) { return 0; }
#endif

static struct nbdkit_plugin plugin = {
  .name = "plain",
  .config = plain_config,
  .open = plain_open,
  .get_size = plain_get_size,
  .pread = plain_pread,
  .pwrite = plain_pwrite,
#ifdef FLUSH
  .flush = plain_flush,
#endif
#ifdef TRIM
  .trim = plain_trim,
#endif
#ifdef ZERO
  .zero = plain_zero,
#endif
};
NBDKIT_REGISTER_PLUGIN (plugin)
