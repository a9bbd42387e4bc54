"""Answers a state of `lm-state` or `lora` in llama.cpp alone, without iai_hf, transformers and PEFT.

    iai export words --peft words-lora
    pip install llama-cpp-python
    python llama.cpp/convert_hf_to_gguf.py MODEL --outfile model.gguf --outtype f32
    python llama.cpp/convert_lora_to_gguf.py words-lora --base MODEL --outfile words.gguf
    python scripts/answer_with_llama_cpp.py --model model.gguf --adapter words.gguf --folder words-lora "a text"

MODEL is the backbone's folder, and both converters are llama.cpp's own (its sources, which those of llama-cpp-python
hold too). The plain model reads the demonstrations of `prompt_ids.json`; the adapter is switched on behind them, as an
activated LoRA asks for. Texts are cut nowhere, and answers end with their line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

try:
    import llama_cpp
except ImportError:
    raise SystemExit("llama_cpp is not installed: pip install llama-cpp-python") from None


class Answering:
    """A model, and an adapter that is on from the query on.

    Args:
        before: ids that the plain model reads before every query.
    """

    def __init__(self, model: Path, adapter: Path, before: Sequence[int], context: int) -> None:
        self.llm = llama_cpp.Llama(str(model), n_ctx=context, verbose=False)
        self.adapter = llama_cpp.llama_adapter_lora_init(self.llm.model, str(adapter).encode())
        if self.adapter is None:
            raise SystemExit(f"{adapter} is no adapter of {model}: convert both from what they were made of")
        self.before = list(before)

    def tokens(self, text: str) -> list[int]:
        """Ids of a piece of a prompt; names of control tokens in it are read as text."""
        return self.llm.tokenize(text.encode(), add_bos=False, special=False)

    def answer(self, pieces: Sequence[str], longest: int) -> str:
        """The greedy answer to a query, whose pieces are tokenised each by itself, as the state reads them."""
        self.llm.reset()
        self._switch(on=False)
        if self.before:
            self.llm.eval(self.before)
        self._switch(on=True)
        self.llm.eval([token for piece in pieces for token in self.tokens(piece)])
        found: list[int] = []
        while len(found) < longest and b"\n" not in self.llm.detokenize(found):
            found.append(self.llm.sample(temp=0.0))
            if found[-1] == self.llm.token_eos():
                break
            self.llm.eval(found[-1:])
        return self.llm.detokenize(found).decode(errors="replace").split("\n")[0].strip()

    def _switch(self, *, on: bool) -> None:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
        if llama_cpp.llama_set_adapters_lora(self.llm.ctx, adapters, int(on), (ctypes.c_float * 1)(1.0)):
            raise SystemExit("llama.cpp does not take the adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of the backbone")
    parser.add_argument("--adapter", type=Path, required=True, help="GGUF file of the state")
    parser.add_argument("--folder", type=Path, required=True, help="what `iai export --peft` wrote")
    parser.add_argument("--input-label", default="Input:", help="as in the state's settings")
    parser.add_argument("--output-label", default="Output:")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()
    missing = [str(path) for path in (args.model, args.adapter, args.folder) if not path.exists()]
    if missing:
        parser.error(f"there is no {', '.join(missing)}")
    ids = args.folder / "prompt_ids.json"
    before = json.loads(ids.read_text()) if ids.is_file() else []
    answering = Answering(args.model, args.adapter, before, args.context)
    for text in args.texts:
        pieces = (args.input_label, f" {text}", f"\n{args.output_label}")
        print(answering.answer(pieces, args.max_new_tokens))


if __name__ == "__main__":
    main()
