"""Three graded rows and the chain of thought of each, for the tests of teacher and replies."""

from taosr1.task.judgement import Judgement

ROWS = [
    Judgement("boots not leather", "Suede boots", category="footwear", grade=3, query_id="q1", item_id="i1"),
    Judgement("red mug", "Red steel mug", grade=4, price="$9", description="d" * 9000),
    Judgement("red mug", "Lid for mug", grade=2, query_id="q2", item_id="i2"),
]
COTS = [
    "Query: boots; material not leather\nItem: boots; material suede\nCategory: same\nAttributes: material near\n"
    "Decision: 3-Related",
    "Query: mug; colour red\nItem: mug; colour red\nCategory: same\nAttributes: colour met\nDecision: 4-Excellent",
    "Query: mug; colour red\nItem: mug lid\nCategory: related accessory\nAttributes: colour unknown\n"
    "Decision: 2-Mismatch",
]
