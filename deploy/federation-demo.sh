#!/usr/bin/env bash
# A real federation on this computer: one server and three hospitals as processes of their own, over TLS
# with node keys on loopback, on made-up patients. Ends by itself with a report.
#
#   deploy/federation-demo.sh [FOLDER]      FOLDER is made anew; default runs/federation-demo
set -euo pipefail

bin="${FEDGLIOMA_BIN:-.venv/bin}"
folder="${1:-runs/federation-demo}"
port="${FEDGLIOMA_DEMO_PORT:-18443}"
rounds="${FEDGLIOMA_DEMO_ROUNDS:-3}"
sites=(ningxia zhengzhou henan)

if [ -e "$folder" ]; then
    echo "error: $folder is there; remove it or name another folder" >&2
    exit 2
fi
mkdir -p "$folder"

pids=()
end_all() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap end_all EXIT

echo '1. made-up patients: three hospitals, and held-out ones of the coordinating centre'
"$bin/fedglioma-server" synthesize "$folder/hospitals" --by-site --patients 90 --size 32 >/dev/null
"$bin/fedglioma-server" synthesize "$folder/centre" --patients 45 --size 32 --seed 7 >/dev/null

echo '2. certificates, and a start-up kit with a key for each hospital'
"$bin/fedglioma-server" provision --out "$folder/consortium" --host 127.0.0.1 --port "$port" \
    --site "${sites[0]}" --site "${sites[1]}" --site "${sites[2]}" >/dev/null
sed -i "s#^address: .*#address: 127.0.0.1#; s#^cohorts: .*#cohorts: [../centre]#; s#^out: .*#out: ../federation#" \
    "$folder/consortium/server.yaml"

echo '3. the server and three hospitals, each a process of its own'
for site in "${sites[@]}"; do
    kit="$folder/consortium/kits/$site"
    sed -i "s#EDIT-THIS/cohort#../../../hospitals/$site#" "$kit/$site.yaml"
    (
        until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.3; done
        exec "$bin/fedglioma-client" --site "$site" --config-dir "$kit" --once
    ) >"$folder/$site.log" 2>&1 &
    pids+=($!)
done
"$bin/fedglioma-server" start --config "$folder/consortium/server.yaml" \
    --width 2 --crop 32 --spacing-mm 5.5 --batch-size 8 --lr 0.002 --rounds "$rounds" --quorum 3

echo "what the hospitals said: $folder/ningxia.log, zhengzhou.log, henan.log"
echo "audit logs: $bin/fedglioma-server audit verify $folder/federation"
