#!/bin/sh
# Keys, settings and made-up patients of the demo in compose.yaml. What is there is kept.
# usage: prepare.sh [FOLDER [OWNER [GRAFANA]]]
set -eu
umask 077

demo=${1:-/demo}
owner=${2:-10001:10001}
grafana=${3:-472:0}
sites="ningxia zhengzhou"
consortium=$demo/authority/consortium

if [ -e "$demo/authority/done" ]; then
    echo "the demo is prepared already"
    exit 0
fi

# Again from the start after a run that did not end.
rm -rf "$demo"/authority/* "$demo"/server/* "$demo"/grafana/*
fedglioma-server provision --out "$consortium" --name "Demo consortium" --host server \
    --site ningxia --site zhengzhou

# The server: its certificate and key, the hospitals' public keys, its own patients. Not the authority's key.
mkdir -p "$demo/server/server" "$demo/server/ca"
cp "$consortium/server/server.pem" "$consortium/server/server.key" "$demo/server/server/"
cp "$consortium/ca/ca.pem" "$demo/server/ca/"
cp -r "$consortium/sites" "$demo/server/sites"
fedglioma-server synthesize "$demo/server/patients" --patients 60 --sites centre --size 24 --overlap 0.25 --seed 1
cat > "$demo/server/server.yaml" <<'YAML'
address: 0.0.0.0
port: 8443
certificate: server/server.pem
key: server/server.key
ca: ca/ca.pem
sites: sites
expected: [ningxia, zhengzhou]
out: /var/lib/fedglioma/runs/demo
cohorts: [patients]
cache: /var/lib/fedglioma/cache
metrics_port: 9464
run:
  rounds: 30
  width: 2
  crop: 24
  spacing_mm: 5.5
  lr: 0.002
  quorum: 2
YAML

# A hospital: its kit and its patients. State and cache lie where it may write.
for site in $sites; do
    rm -rf "${demo:?}/$site"/*
    cp "$consortium/kits/$site/"* "$demo/$site/"
    fedglioma-server synthesize "$demo/$site/patients" --patients 40 --sites "$site" --size 24 --overlap 0.25 --seed 2
    sed -i -e 's|^data:.*|data: patients|' \
        -e 's|^cache:.*|cache: /var/lib/fedglioma/cache|' \
        -e 's|^state:.*|state: /var/lib/fedglioma/state|' "$demo/$site/$site.yaml"
    echo "metrics_port: 9465" >> "$demo/$site/$site.yaml"
    chown -R "$owner" "$demo/$site"
done
chown -R "$owner" "$demo/server"
if [ -d "$demo/runs" ]; then chown "$owner" "$demo/runs"; fi

python -c "import secrets; print(secrets.token_urlsafe(18), end='')" > "$demo/grafana/password"
chown -R "$grafana" "$demo/grafana"

touch "$demo/authority/done"
