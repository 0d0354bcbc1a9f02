#!/bin/bash
# SPDX-License-Identifier: MIT
# copyright.sh: appends to debian/copyright what the modules in vendor/ say of
# themselves, in the form of DEP 5, and collects their notices in debian/NOTICE. It runs in the unpacked source. A licence
# that it does not know is an error: somebody has to read it first.
set -eu
# indent: a text as the value of a field.
indent() { sed -e 's/\r$//; s/[[:space:]]*$//; s/^$/./; s/^/ /'; }
find vendor -type f \( -iname 'LICENSE*' -o -iname 'COPYING*' \) | LC_ALL=C sort | while read -r file; do
  if grep -q 'Apache License' "$file"; then name=Apache-2.0
  elif grep -q 'Permission is hereby granted, free of charge' "$file"; then name=Expat
  elif grep -qi 'Redistributions in binary form' "$file"; then
    if grep -qi 'Neither the name' "$file"; then name=BSD-3-clause; else name=BSD-2-clause; fi
  else
    echo "copyright.sh: what licence is $file?" >&2
    exit 1
  fi
  dir=$(dirname "$file")
  who=$(cat "$file" "$dir/NOTICE" "$dir"/AUTHORS* 2>/dev/null | sed -n 's/^ *Copyright *\((c)\|(C)\)\? *\([12][0-9].*\)/\2/p')
  [ -n "$who" ] || who="the authors of ${dir#vendor/}"
  echo
  case $file in
    *.Golang) echo "Files: $file" ;; # a second licence beside the first
    *) echo "Files: $dir/*" ;;
  esac
  echo "Copyright: $(sed '2,$s/^/ /' <<<"$who")"
  # Each text is its own: the names in it differ.
  if [ $name = Apache-2.0 ]; then
    echo "License: $name"
  else
    echo "License: $name-$(tr -c 'a-zA-Z0-9.\n' - <<<"${file#vendor/}")"
    indent <"$file"
  fi
done >>debian/copyright
# The Apache License wants these passed on.
find vendor -type f -name 'NOTICE*' | LC_ALL=C sort | while read -r file; do
  printf '%s:\n\n' "${file#vendor/}"
  cat "$file"
  echo
done >debian/NOTICE
cat >>debian/copyright <<'EOF'

License: Apache-2.0
 On Debian systems, the full text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
EOF
