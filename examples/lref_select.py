"""LREF's choice of SFT rows (2503.09223): learnable (a trained model gets them right), hard (a barely trained one does not), not mislabelled
(a model trained on the other half of the rows agrees with the grade).

    python examples/lref_select.py SEED BARELY_TRAINED TRAINED TRAINED_ON_FIRST_HALF TRAINED_ON_SECOND_HALF OUT.jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from taosr1.evaluation.predict import predict
from taosr1.judge import load_judge
from taosr1.task.judgements import write_judgements
from taosr1.task.prompt import label_of_cot
from taosr1.task.sources import load_rows

seed, barely, trained, first, second, out = int(sys.argv[1]), *sys.argv[2:7]
rows = load_rows("world:reasoned", seed=seed, need_grade=True, need_cot=True)
half = len(rows) // 2


def right(model: str, part: list) -> list[bool]:
    return [p.grade == row.grade for p, row in zip(predict(load_judge(model), part, max_new_tokens=96), part)]


learnable, easy = right(trained, rows), right(barely, rows)
clean = right(second, rows[:half]) + right(first, rows[half:])
chosen = [row for row, a, b, c in zip(rows, learnable, easy, clean) if a and not b and c]
print(f"{len(chosen)} of {len(rows)} rows chosen, {sum(label_of_cot(row.cot) == row.grade for row in chosen)} with a right chain of thought")
write_judgements(out, chosen)
