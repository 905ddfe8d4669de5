"""A judge as it is served: with its name and the hashes that every reply is stamped with."""

from __future__ import annotations

from dataclasses import dataclass

from taosr1.judge import Judge
from taosr1.model.io.digest import model_digest


@dataclass(frozen=True)
class Served:
    """One loaded judge. model_sha: of everything that decides its replies. rubric_sha: of the prompt's wording."""

    judge: Judge
    model_sha: str
    rubric_sha: str

    @staticmethod
    def of(judge: Judge) -> Served:
        model = judge.model
        return Served(judge, model_digest(model.model, model.tokenizer, model.prompt), model.prompt.wording_sha256)

    @property
    def name(self) -> str:
        return self.judge.name

    def facts(self) -> dict:
        """What every reply says about where it comes from."""
        served = {"beta": self.judge.beta, "temperature": self.judge.temperature}
        return {"model": self.name, "model_sha": self.model_sha, "rubric": self.rubric_sha, **served}
