# One seed of the LREF comparison: bash examples/lref.sh SEED
set -e
s=$1; r=runs/lref-$s; sft="python train/sft.py --eval-every 10000 --dtype bfloat16 --seed $s --cots all"
mkdir -p runs
python - <<END
from taosr1.task.judgements import write_judgements
from taosr1.task.sources import load_rows
rows = load_rows("world:reasoned", seed=$s)
write_judgements("$r-first.jsonl", rows[: len(rows) // 2]), write_judgements("$r-second.jsonl", rows[len(rows) // 2 :])
END
$sft --steps 60 --out $r-barely
$sft --steps 500 --out $r-all
$sft --steps 200 --data $r-first.jsonl --out $r-trained-first
$sft --steps 200 --data $r-second.jsonl --out $r-trained-second
python examples/lref_select.py $s $r-barely $r-all $r-trained-first $r-trained-second $r-chosen.jsonl
$sft --steps 500 --data $r-chosen.jsonl --out $r-chosen
for name in all chosen; do python infer/evaluate.py --model $r-$name --out $r-$name.json; done
