"""bespokelabs-curator against a server: prints seconds for N prompts. Runs in a virtual environment of its own.

It counts tokens with an encoding that tiktoken would download; a byte-level one stands in, which is faster.
"""

import sys
import tempfile
import time

import tiktoken

BYTES = tiktoken.Encoding(
    "bytes", pat_str=r"\S+|\s+", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
)
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda _: BYTES

from bespokelabs import curator  # noqa: E402


def main(url: str, prompts: int, in_flight: int) -> None:
    model = curator.LLM(
        model_name="gpt-4o-mini",  # a name that its price table knows; the server does not care
        backend="openai",
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_concurrent_requests": in_flight,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
        generation_params={"temperature": 1.0, "max_tokens": 512},
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        answers = model([f"what of film {i}?" for i in range(prompts)], working_dir=folder)
        took = time.perf_counter() - start
    assert len(answers.dataset if hasattr(answers, "dataset") else answers) == prompts
    print(f"\nSECONDS {took}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
