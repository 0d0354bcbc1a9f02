/* SPDX-License-Identifier: MIT */

/* nbdkit -D swift.NAME=1 sets these before the plugin is configured. They must
 * be C globals that the plugin exports.
 */
int swift_debug_cache = 0;      /* write-back, in short, every second */
int swift_debug_store = 0;      /* each request that is tried again */
int swift_debug_lock = 0;       /* taking and releasing the lock */
