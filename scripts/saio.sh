#!/bin/bash
# SPDX-License-Identifier: MIT
# saio.sh: runs OpenStack Swift on one node, and Keystone if you want, on loopback,
# as plain processes with one private directory. It needs no systemd, no
# /etc/swift and no /srv. It needs root only to install the packages.
#
#   saio.sh install [--keystone]    install the packages (root)
#   saio.sh up      [--keystone]    make configuration and rings, and start what does not run
#   saio.sh down                    stop; the data stays
#   saio.sh wipe                    stop and remove the directory
#   saio.sh status                  print one line for each process; exit 1 if one is down
#   saio.sh stop NAME...            stop some processes, by the names that status prints
#   saio.sh start NAME...           start them again
#   saio.sh sync                    run container-sync once (SAIO_PIPELINE=container_sync)
#   saio.sh env                     print ST_*, SWIFTNBD_TEST_* and OS_* to eval
#
# Settings (environment):
#   SAIO_DIR      state directory             ($TMPDIR/swiftnbd-saio-$UID)
#   SAIO_PORT     proxy port; the next ones are used too (the last port of the
#                 directory, or else twelve free ports in a row from 18500 on):
#                 +0 proxy tempauth, +1 proxy keystone, +2 object, +3 container,
#                 +4 account, +5 memcached, +6 keystone, +7 +8 more object servers,
#                 +9 +10 more container servers, +11 the slow proxy
#   SAIO_FSYNC    1: real fsync (default); 0: fsync does nothing (tests, CI)
#   SAIO_MEMOBJ   1: keep objects in the object server's memory (swift.obj.mem_server)
#   SAIO_WORKERS  processes of each proxy, object and container server; 0: one, no fork (0)
#   SAIO_LOG      INFO (one line for each request in log/proxy.log) or WARNING (INFO)
#   SAIO_REPLICAS 1 (default) to 3 devices, each with an object and a container server
#   SAIO_SKEW     start one more proxy, proxy-slow, with a clock this many seconds behind
#   SAIO_ERROR_LIMIT  after this many errors of a server, a proxy avoids it for a minute (10)
#   SAIO_PIPELINE more filters for the proxies: name_check, container_sync, staticweb, encryption ("");
#                 with container_sync, "saio.sh sync" runs Swift's container-sync once
#   SAIO_MAX_FILE_SIZE  size of the largest object in bytes (Swift's own limit, 5 GiB)
#   SAIO_TOKEN_LIFE, SAIO_KS_EXPIRATION  life of a token in seconds (86400, 3600)
set -eu
SELF=$(cd "$(dirname "$0")" && pwd)
DIR=${SAIO_DIR:-${TMPDIR:-/tmp}/swiftnbd-saio-$(id -u)}
FSYNC=${SAIO_FSYNC:-1}
MEMOBJ=${SAIO_MEMOBJ:-0}
WORKERS=${SAIO_WORKERS:-0}
LOG=${SAIO_LOG:-INFO}
REPLICAS=${SAIO_REPLICAS:-1}
SKEW=${SAIO_SKEW:-}
NAME_CHECK='' SYNC='' STATICWEB='' ENCRYPTION=''
for f in ${SAIO_PIPELINE:-}; do
  case $f in
    name_check) NAME_CHECK=name_check;;
    container_sync) SYNC=container_sync;;
    staticweb) STATICWEB=staticweb;;
    encryption) ENCRYPTION='keymaster encryption';;
    *) echo "saio: SAIO_PIPELINE: there is no filter \"$f\"" >&2; exit 2;;
  esac
done
PY=/usr/bin/python3            # Debian's own, which sees Debian's Swift
ME=$(id -un)
export PYTHONNOUSERSITE=1
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY || true

free() { # port -> 0 if nothing listens there
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
choose_port() { # prints the first of twelve free ports in a row
  local base i
  for base in $(seq 18500 20 19980); do
    for i in $(seq 0 11); do free $((base+i)) || continue 2; done
    echo "$base"
    return
  done
  echo "saio: no twelve free ports in a row from 18500 to 19999; set SAIO_PORT" >&2
  return 1
}
# Holds this user's lock on the choice of ports, which rgw.sh takes too. Without
# it two that start at once find the same ports free. Who chooses passes over a row
# of which any port is taken, so the lock is held until the first server listens.
# That server must not inherit the descriptor.
lock_ports() {
  exec 8>>"/tmp/swiftnbd-ports-$(id -u).lock"
  flock -n 8 || { echo "saio: waiting for another start" >&2; flock 8; }
}
unlock_ports() { exec 8>&-; }
# Sets the ports. The one in use is kept in the directory, so that later
# commands need SAIO_DIR only.
ports() {
  P=${SAIO_PORT:-}
  if [ -z "$P" ] && [ -e "$DIR/port" ]; then P=$(cat "$DIR/port"); fi
  if [ -z "$P" ]; then P=$(choose_port); fi
  KPORT=$((P+1)) OBJ=$((P+2)) CON=$((P+3)) ACC=$((P+4)) MEM=$((P+5)) KS=$((P+6)) SLOW=$((P+11))
}
object_port() { # 1..3
  if [ "$1" = 1 ]; then echo "$OBJ"; else echo $((P+5+$1)); fi
}
container_port() { # 1..3
  if [ "$1" = 1 ]; then echo "$CON"; else echo $((P+7+$1)); fi
}
port_of() { # name -> the server's port
  case $1 in
    memcached) echo "$MEM";;
    account-server) echo "$ACC";;
    container-server[1-3]) container_port "${1#container-server}";;
    object-server[1-3]) object_port "${1#object-server}";;
    proxy-server) echo "$P";;
    proxy-keystone) echo "$KPORT";;
    proxy-slow) echo "$SLOW";;
    keystone) echo "$KS";;
    *) echo "saio: there is no $1" >&2; return 2;;
  esac
}

alive() { # name -> 0 if the pid file names a live process of ours
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$DIR/"
}
start() { # name command... : start unless alive; the command line must mention $DIR/
  local name=$1 port i end; shift
  alive "$name" && return 0
  port=$(port_of "$name")
  # Another's server there would answer in this one's place. One of ours that
  # was stopped may need a moment.
  end=$((SECONDS+10))
  until free "$port"; do
    [ "$SECONDS" -lt "$end" ] || { echo "saio: $name's port $port is taken; see SAIO_PORT, or wipe $DIR" >&2; return 1; }
    sleep 0.1
  done
  setsid "$@" </dev/null >>"$DIR/log/$name.log" 2>&1 8>&- &
  echo $! >"$DIR/run/$name.pid"
  # alive knows it by its command line, from its exec on.
  for i in $(seq 100); do
    if alive "$name" || ! kill -0 $! 2>/dev/null; then break; fi
    sleep 0.01
  done
}
stop() { # names... : TERM to all, then wait; a zombie counts as gone (its cmdline is empty)
  local n pid i
  for n in "$@"; do
    alive "$n" || continue
    pid=$(cat "$DIR/run/$n.pid")
    # children too, so that workers do not outlive the parent
    # shellcheck disable=SC2046 # one word a child
    kill -TERM "$pid" $(ps -o pid= --ppid "$pid") 2>/dev/null || true
  done
  for n in "$@"; do
    for i in $(seq 100); do alive "$n" || break; sleep 0.05; done
    if alive "$n"; then kill -KILL "$(cat "$DIR/run/$n.pid")" 2>/dev/null || true; fi
    rm -f "$DIR/run/$n.pid"
  done
}
wait_http() { # url name
  local i
  for i in $(seq 300); do
    if curl -s --noproxy '*' -o /dev/null "$1"; then return 0; fi
    alive "$2" || break
    sleep 0.1
  done
  echo "saio: $2 did not come up; see $DIR/log/$2.log" >&2; tail -n 5 "$DIR/log/$2.log" >&2; return 1
}

install() {
  local purpose=swift
  [ "$KEYSTONE" = 0 ] || purpose=keystone
  "$SELF/deps.sh" install "$purpose"
}

config() {
  mkdir -p "$DIR"/{conf,cache}
  local i; for i in $(seq 1 "$REPLICAS"); do mkdir -p "$DIR/node/sd$i"; done
  cd "$DIR/conf"
  [ -e swift.conf ] || cat >swift.conf <<X
[swift-hash]
swift_hash_path_prefix = saio
swift_hash_path_suffix = saio
[storage-policy:0]
name = Policy-0
default = yes
[storage-policy:1]
name = Second
${SAIO_MAX_FILE_SIZE:+[swift-constraints]
max_file_size = $SAIO_MAX_FILE_SIZE}
X
  cat >memcache.conf <<X
[memcache]
memcache_servers = 127.0.0.1:$MEM
X
  backend() { # type port file devices app
    cat >"$3" <<X
[DEFAULT]
swift_dir = $DIR/conf
bind_ip = 127.0.0.1
bind_port = $2
workers = $4
user = $ME
devices = $DIR/node
mount_check = false
disable_fallocate = true
log_level = WARNING
backlog = 4096
max_clients = 1024
db_preallocation = off
[pipeline:main]
pipeline = healthcheck $1-server
[app:$1-server]
use = egg:swift#$5
# A late container update becomes an async_pending file, and then a listing
# lacks the object until an object-updater runs; there is none here, so wait.
container_update_timeout = 60
recon_cache_path = $DIR/cache
# Page cache: do not drop what was just written.
keep_cache_private = true
keep_cache_size = 5242880
[filter:healthcheck]
use = egg:swift#healthcheck
X
  }
  local oapp=object; [ "$MEMOBJ" = 1 ] && oapp=mem_object
  backend account $ACC account-server.conf 0 account
  for i in $(seq 1 "$REPLICAS"); do
    backend container "$(container_port "$i")" "container-server$i.conf" "$WORKERS" container
    backend object "$(object_port "$i")" "object-server$i.conf" "$WORKERS" "$oapp"
  done

  proxy() { # port file auth-pipeline s3
    cat >"$2" <<X
[DEFAULT]
swift_dir = $DIR/conf
bind_ip = 127.0.0.1
bind_port = $1
workers = $WORKERS
user = $ME
log_level = $LOG
backlog = 4096
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging $NAME_CHECK cache listing_formats $SYNC bulk tempurl $3 $STATICWEB copy container-quotas account-quotas slo dlo versioned_writes symlink $ENCRYPTION proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
node_timeout = 60
conn_timeout = 5
error_suppression_limit = ${SAIO_ERROR_LIMIT:-10}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$MEM
# On a busy machine memcached answers late; without it nobody is logged in, and
# Swift would do without for a minute.
memcache_max_connections = 50
connect_timeout = 10
pool_timeout = 10
io_timeout = 20
error_suppression_limit = 1000000
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:s3api]
use = egg:swift#s3api
s3_acl = no
check_bucket_owner = no
[filter:tempauth]
use = egg:swift#tempauth
user_admin_admin = admin .admin .reseller_admin
user_test_tester = testing .admin
user_test_tester3 = testing3
user_test2_tester2 = testing2 .admin
token_life = ${SAIO_TOKEN_LIFE:-86400}
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = http://127.0.0.1:$KS/
auth_url = http://127.0.0.1:$KS/
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = swift
password = swiftpass
delay_auth_decision = True
cache = swift.cache
include_service_catalog = False
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member, swiftoperator
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
[filter:name_check]
use = egg:swift#name_check
[filter:container_sync]
use = egg:swift#container_sync
current = //REALM/ONE
[filter:staticweb]
use = egg:swift#staticweb
$CRYPTO
X
  }
  # Only for tests: a root secret that everybody knows.
  local CRYPTO="[filter:keymaster]
use = egg:swift#keymaster
encryption_root_secret = c3dpZnRuYmQgdGVzdHMsIG5vIHNlY3JldCBhdCBhbGwsIDQ4IGJ5dGVz
[filter:encryption]
use = egg:swift#encryption"
  cat >container-sync-realms.conf <<X
[REALM]
key = realmkey
cluster_ONE = http://127.0.0.1:$P/v1/
X
  # What container-sync reads objects with: it must decrypt them.
  cat >internal-client.conf <<X
[DEFAULT]
swift_dir = $DIR/conf
[pipeline:main]
pipeline = catch_errors cache symlink $ENCRYPTION proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$MEM
[filter:symlink]
use = egg:swift#symlink
$CRYPTO
X
  proxy "$P" proxy-server.conf "s3api tempauth"
  proxy "$KPORT" proxy-keystone.conf "authtoken keystoneauth"
  proxy "$SLOW" proxy-slow.conf "s3api tempauth"

  # Launcher: Debian's swift 2.30 reads swift.conf only from /etc/swift, but
  # swift.common.utils.set_swift_dir() (there for its own tests) moves it.
  cat >"$DIR/conf/swiftd.py" <<'X'
import os, sys, time
role, conf = sys.argv[1:3]
if role == 'proxy-server' and len(sys.argv) > 3:
    # Before the first import of Swift, which takes the function into its modules.
    clock, behind = time.time, float(sys.argv[3])
    time.time = lambda: clock() - behind
from swift.common import utils
utils.set_swift_dir(os.path.dirname(conf))
from swift.common import constraints, storage_policy
constraints.reload_constraints()
storage_policy.reload_storage_policies()
if os.environ.get('SAIO_FSYNC', '1') == '0':
    os.fsync = os.fdatasync = lambda fd: None
    # sqlite: every account and container change is a transaction
    from swift.common import db
    orig = db.get_db_connection
    def get_db_connection(*a, **kw):
        conn = orig(*a, **kw)
        conn.execute('PRAGMA synchronous = OFF')
        return conn
    db.get_db_connection = get_db_connection
if role == 'rings':
    from swift.common.ring import RingBuilder
    d = os.path.dirname(conf)
    for name, ports in (a.split('=') for a in sys.argv[3:]):
        ports = [int(p) for p in ports.split(',')]
        b = RingBuilder(8, len(ports), 0)
        for i, port in enumerate(ports, 1):
            b.add_dev({'region': 1, 'zone': i, 'ip': '127.0.0.1', 'port': port,
                       'replication_ip': '127.0.0.1', 'replication_port': port,
                       'device': 'sd%d' % i, 'weight': 1.0, 'meta': ''})
        b.rebalance()
        b.get_ring().save(os.path.join(d, name + '.ring.gz'))
    sys.exit(0)
from swift.common.wsgi import run_wsgi
kw = {'verbose': True}
if role == 'object-server':
    from swift.obj import server
    kw['global_conf_callback'] = server.global_conf_callback
# no syslog daemon here: what would go to /dev/log goes to standard error only
import logging
class NoSyslog(logging.NullHandler):
    def __init__(self, *a, **kw):
        logging.NullHandler.__init__(self)
utils.ThreadSafeSysLogHandler = NoSyslog
if role == 'container-sync':
    from swift.container.sync import ContainerSync
    # The container server's port says which databases are this node's.
    c = utils.readconf(conf, 'app:container-server')
    ContainerSync(dict(c, internal_client_conf_path=os.path.join(os.path.dirname(conf), 'internal-client.conf'))).run_once()
    sys.exit(0)
sys.exit(run_wsgi(conf, role, **kw))
X
  if [ ! -e object.ring.gz ]; then
    local o="$OBJ" c="$CON" a="$ACC"
    for i in $(seq 2 "$REPLICAS"); do
      o="$o,$(object_port "$i")" c="$c,$(container_port "$i")" a="$a,$ACC"
    done
    $PY swiftd.py rings "$DIR/conf/x" object="$o" object-1="$o" container="$c" account="$a"
  fi
}

keystone_config() {
  mkdir -p "$DIR"/keystone/{fernet,credential}
  cd "$DIR/keystone"
  cat >keystone.conf <<X
[DEFAULT]
use_stderr = true
log_file =
[database]
connection = sqlite:///$DIR/keystone/keystone.db
[token]
provider = fernet
expiration = ${SAIO_KS_EXPIRATION:-3600}
[fernet_tokens]
key_repository = $DIR/keystone/fernet
[fernet_receipts]
key_repository = $DIR/keystone/fernet
[credential]
key_repository = $DIR/keystone/credential
[cache]
enabled = false
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
X
  # One small wsgi server in front of keystone's application, with the standard library only.
  cat >keystoned.py <<'X'
import sys
from wsgiref.simple_server import make_server, WSGIServer, WSGIRequestHandler
conf, port = sys.argv[1:3]
from keystone.server.flask.core import initialize_application
sys.argv[1:] = []
app = initialize_application('public', config_files=[conf])
class Server(WSGIServer):  # one thread: keystone with sqlite and threads gives 'database is locked'
    request_queue_size = 256
class Handler(WSGIRequestHandler):
    protocol_version = 'HTTP/1.0'
    def address_string(self):
        return self.client_address[0]
make_server('127.0.0.1', int(port), app, Server, Handler).serve_forever()
X
  cat >bootstrap.py <<'X'
import os, sys
conf, ks, swift = sys.argv[1:4]
from keystone.cmd import cli
def manage(*args):
    argv = ['keystone-manage', '--config-file', conf] + list(args)
    pid = os.fork()
    if pid == 0:
        sys.argv = argv
        cli.main(argv=argv, developer_config_file=conf)
        sys.stdout.flush(); os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit('keystone-manage %s failed' % args[0])
manage('db_sync')
import sqlite3
sqlite3.connect(os.path.join(os.path.dirname(conf), 'keystone.db')).execute('PRAGMA journal_mode=WAL')
who = ['--keystone-user', 'root', '--keystone-group', 'root'] if os.geteuid() == 0 else []
manage('fernet_setup', *who)
manage('credential_setup', *who)
manage('bootstrap', '--bootstrap-password', 'adminpass', '--bootstrap-region-id', 'RegionOne',
       '--bootstrap-public-url', ks, '--bootstrap-internal-url', ks, '--bootstrap-admin-url', ks)
X
  [ -e keystone.db ] || $PY bootstrap.py "$DIR/keystone/keystone.conf" "http://127.0.0.1:$KS/v3" x >>"$DIR/log/keystone-bootstrap.log" 2>&1 || {
    rm -f keystone.db; tail -n 5 "$DIR/log/keystone-bootstrap.log" >&2; return 1; }
}
# Users and the catalogue, over the API with the standard library only; idempotent.
keystone_seed() {
  [ -e "$DIR/keystone/appcred.env" ] && return 0
  $PY - "http://127.0.0.1:$KS/v3" "http://127.0.0.1:$KPORT" "$DIR/keystone/appcred.env" <<'X'
import json, sys, urllib.request, urllib.error
ks, swift, out = sys.argv[1:4]
op = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def call(method, path, body=None, token=None):
    r = urllib.request.Request(ks + path, method=method, data=json.dumps(body).encode() if body else None,
                               headers={'Content-Type': 'application/json'})
    if token: r.add_header('X-Auth-Token', token)
    with op.open(r) as f:
        data = f.read()
        return (json.loads(data) if data else {}), f.headers
def token(user, pw, project):
    return call('POST', '/auth/tokens', {'auth': {
        'identity': {'methods': ['password'], 'password': {'user': {'name': user, 'domain': {'id': 'default'}, 'password': pw}}},
        'scope': {'project': {'name': project, 'domain': {'id': 'default'}}}}})[1]['X-Subject-Token']
t = token('admin', 'adminpass', 'admin')
def find(kind, name):
    return next((x['id'] for x in call('GET', '/%ss?name=%s' % (kind, name), token=t)[0][kind + 's']), None)
def ensure(kind, name, **kw):
    return find(kind, name) or call('POST', '/%ss' % kind, {kind: dict(kw, name=name)}, t)[0][kind]['id']
roles = {r: ensure('role', r) for r in ('admin', 'service', 'member', 'swiftoperator')}
for project, user, pw, role in (('service', 'swift', 'swiftpass', 'admin'), ('guests', 'guest', 'guesting', 'member'),
                                 ('test', 'tester', 'testing', 'member')):
    p = ensure('project', project, domain_id='default')
    u = ensure('user', user, domain_id='default', password=pw, default_project_id=p)
    call('PUT', '/projects/%s/users/%s/roles/%s' % (p, u, roles[role]), token=t)
s = ensure('service', 'swift', type='object-store')
if not call('GET', '/endpoints?service_id=' + s, token=t)[0]['endpoints']:
    for i in ('public', 'internal', 'admin'):
        call('POST', '/endpoints', {'endpoint': {'service_id': s, 'interface': i, 'region_id': 'RegionOne',
             'url': swift + '/v1/AUTH_%(project_id)s'}}, t)
t2 = token('tester', 'testing', 'test')
ac = call('POST', '/users/%s/application_credentials' % u,
          {'application_credential': {'name': 'saio', 'secret': 'saiosecret', 'roles': [{'name': 'member'}]}}, t2)[0]
open(out, 'w').write('OS_APPLICATION_CREDENTIAL_ID=%s\nOS_APPLICATION_CREDENTIAL_SECRET=saiosecret\n' % ac['application_credential']['id'])
X
}

services() {
  local i
  printf '%s\n' memcached account-server
  for i in $(seq 1 "$REPLICAS"); do printf '%s\n' "container-server$i" "object-server$i"; done
  echo proxy-server
  if [ -n "$SKEW" ]; then echo proxy-slow; fi
  if [ "$KEYSTONE" = 1 ] || [ -e "$DIR/run/keystone.pid" ]; then
    echo keystone
    echo proxy-keystone
  fi
}
launch() { # name: start it unless it runs
  local conf=$DIR/conf
  export SAIO_FSYNC=$FSYNC
  case $1 in
    # -k would lock memory; the last argument only puts $DIR/ on the command line for alive()
    memcached) start "$1" memcached -l 127.0.0.1 -p $MEM -U 0 -m 64 -c 4096 -u "$ME" -P "$DIR/run/memcached.own.pid";;
    account-server|container-server[1-3]|object-server[1-3])
      start "$1" $PY "$conf/swiftd.py" "${1%[1-3]}" "$conf/$1.conf";;
    proxy-server|proxy-keystone) start "$1" $PY "$conf/swiftd.py" proxy-server "$conf/$1.conf";;
    proxy-slow) start "$1" $PY "$conf/swiftd.py" proxy-server "$conf/$1.conf" "${SKEW:-0}";;
    keystone) start "$1" $PY "$DIR/keystone/keystoned.py" "$DIR/keystone/keystone.conf" $KS;;
    *) port_of "$1";; # which says that there is none
  esac
}
await() { # name: wait until it answers
  case $1 in
    memcached)
      while free "$MEM"; do
        alive "$1" || { echo "saio: $1 did not come up; see $DIR/log/$1.log" >&2; return 1; }
        sleep 0.05
      done;;
    keystone) wait_http "http://127.0.0.1:$KS/v3" "$1";;
    *) wait_http "http://127.0.0.1:$(port_of "$1")/healthcheck" "$1";;
  esac
}
up() {
  local s
  mkdir -p "$DIR"/{log,run}
  echo "$P" >"$DIR/port"
  launch memcached
  await memcached
  unlock_ports
  [ -n "${SAIO_NOCONFIG:-}" ] || config   # SAIO_NOCONFIG=1: keep hand-edited files
  [ "$KEYSTONE" != 1 ] || keystone_config
  for s in $(services); do launch "$s"; done
  for s in $(services); do
    await "$s"
    if [ "$s" = keystone ]; then keystone_seed; fi
  done
}
down() {
  local f names=()
  for f in "$DIR"/run/*.pid; do
    case $f in *'*.pid'|*.own.pid) continue;; esac
    names+=("$(basename "$f" .pid)")
  done
  stop "${names[@]}"
}
envout() {
  local auth=http://127.0.0.1:$P/auth/v1.0
  cat <<X
export ST_AUTH=$auth ST_USER=test:tester ST_KEY=testing
export SWIFTNBD_TEST_AUTH=$auth SWIFTNBD_TEST_USER=test:tester SWIFTNBD_TEST_KEY=testing
X
  [ -z "$SKEW" ] || echo "export SWIFTNBD_TEST_SLOW_AUTH=http://127.0.0.1:$SLOW/auth/v1.0"
  [ -e "$DIR/keystone/appcred.env" ] || return 0
  # shellcheck disable=SC1091 # written by keystone_seed
  . "$DIR/keystone/appcred.env"
  cat <<X
export SWIFTNBD_TEST_KEYSTONE=http://127.0.0.1:$KS/v3
export SWIFTNBD_TEST_APPCRED_ID=$OS_APPLICATION_CREDENTIAL_ID SWIFTNBD_TEST_APPCRED_SECRET=$OS_APPLICATION_CREDENTIAL_SECRET
# v3 password:
# export OS_AUTH_URL=http://127.0.0.1:$KS/v3 OS_IDENTITY_API_VERSION=3 OS_USERNAME=tester OS_PASSWORD=testing OS_PROJECT_NAME=test OS_USER_DOMAIN_NAME=Default OS_PROJECT_DOMAIN_NAME=Default OS_REGION_NAME=RegionOne
# v3 application credential:
# export OS_AUTH_URL=http://127.0.0.1:$KS/v3 OS_AUTH_TYPE=v3applicationcredential OS_APPLICATION_CREDENTIAL_ID=$OS_APPLICATION_CREDENTIAL_ID OS_APPLICATION_CREDENTIAL_SECRET=$OS_APPLICATION_CREDENTIAL_SECRET
X
}

cmd=${1:-status}; shift || true
KEYSTONE=${SAIO_KEYSTONE:-0}
case $cmd in
  stop|start) [ $# != 0 ] || { echo "saio: $cmd what?" >&2; exit 2; };;
  *) for a in "$@"; do case $a in --keystone) KEYSTONE=1;; *) echo "saio: unknown $a" >&2; exit 2;; esac; done;;
esac
case $cmd in
  install) install;;
  up) lock_ports
    ports
    UP=0
    trap '[ $UP = 1 ] || down' EXIT
    up
    UP=1;;
  down) down;;
  sync) SAIO_FSYNC=$FSYNC $PY "$DIR/conf/swiftd.py" container-sync "$DIR/conf/container-server1.conf";;
  stop) stop "$@";;
  start) ports
    for s in "$@"; do launch "$s"; done
    for s in "$@"; do await "$s"; done;;
  wipe) down; rm -rf "$DIR";;
  env) ports; envout;;
  status) rc=0
    for s in $(services); do
      if alive "$s"; then echo "$s up pid $(cat "$DIR/run/$s.pid")"; else echo "$s down"; rc=1; fi
    done; exit $rc;;
  *) sed -n '3,36p' "$0" >&2; exit 2;;
esac
