"""distilabel against a server: prints seconds for N prompts. Runs in a virtual environment of its own."""

import sys
import tempfile
import time

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main(url: str, prompts: int, in_flight: int) -> None:
    rows = [{"instruction": f"what of film {i}?"} for i in range(prompts)]
    with tempfile.TemporaryDirectory() as folder, Pipeline(name="bench", cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=in_flight)
        task = TextGeneration(
            llm=OpenAILLM(model="loopback", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 512}),
            input_batch_size=in_flight,
        )
        load >> task
        start = time.perf_counter()
        answers = pipeline.run(use_cache=False)
        took = time.perf_counter() - start
        assert len(answers["default"]["train"]) == prompts
        assert all(row["generation"] for row in answers["default"]["train"])
    print(f"\nSECONDS {took}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
