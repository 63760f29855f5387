#!/bin/sh
# Makes what a service needs that others reach, where it is not there yet: a certificate of its own, which its clients
# have to be told, and a token for its administrator. TLS_NAMES: by which names and addresses it is called.
set -eu
umask 077
folder=${1:-/var/lib/orchestrator}
certificate=$folder/tls/server.pem

month_s=2592000
if ! openssl x509 -checkend $month_s -noout -in "$certificate" >/dev/null 2>&1; then
  alternatives=IP:127.0.0.1
  for name in $(echo "${TLS_NAMES:-localhost}" | tr ',' ' '); do
    case $name in
      *:*) alternatives=$alternatives,IP:$name ;;
      *[!0-9.]*) alternatives=$alternatives,DNS:$name ;;
      *) alternatives=$alternatives,IP:$name ;;
    esac
  done
  mkdir -p "$folder/tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 825 -subj /CN=orchestrator \
    -addext "subjectAltName=$alternatives" -addext keyUsage=critical,digitalSignature,keyCertSign \
    -addext extendedKeyUsage=serverAuth -keyout "$folder/tls/server.key" -out "$certificate" 2>/dev/null
  echo "made a certificate for $alternatives: clients are told $certificate"
fi

if [ ! -e "$folder/tokens.toml" ]; then
  orchestrator token new admin --tenant default --role admin --file "$folder/tokens.toml" >"$folder/admin.token"
  echo "made a token with the role admin: it is in $folder/admin.token"
fi
