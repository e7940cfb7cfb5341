"""A driver of one's own: asks the strategy, has the pool measure, tells the strategy. It is a start, not a tool.

    deploy/ray-job-submit.sh --address http://HEAD:8265 --working-dir deploy -- \\
        python driver.py --model meta-llama/Llama-3.1-8B --store s3://my-bucket/variants --data my-text.jsonl

It keeps nothing while it works: `evoray search` does. What it draws depends on the seed alone, so that it finds the
same again.
"""

import argparse
import sys

import evoray
from evoray.evolve import Measurement, Purpose, rng, rungs
from evoray.stopping import Stopped, stops_by_signal


def search(asked: argparse.Namespace) -> str:
    """Searches, prints what it found as `layer: level` lines, and returns that in short."""
    store = evoray.VariantStore.open(asked.store)
    space = evoray.quantization_space(store.manifest, evoray.Budget(evoray.Measure.BITS, asked.target_bits))
    strategy = evoray.OnePlusLambda(
        space,
        offspring=asked.offspring,
        rungs=rungs((4, 1), (asked.tokens // 4, asked.tokens)),
        mutation=evoray.LevelSwitch(),
        seed=asked.seed,
        generations=asked.generations,
    )
    with evoray.open_pool(asked.model, asked.store, workers=asked.workers) as pool:
        length = asked.sequence_length
        text = evoray.search_text(pool, asked.model, asked.data, tokens=4 * asked.tokens, sequence_length=length)

        def measure(wanted: Measurement):
            draws = rng(asked.seed, strategy.generation, Purpose.BATCHES, wanted.drawn.index)
            batches = evoray.draw_batches(text.text, wanted.tokens, draws, 2048, skip=wanted.drawn.skip)
            losses_NB = pool.measure(space.rows(wanted.genotypes), text.works(batches), evoray.Fitness.kl)
            return losses_NB, evoray.Fitness.kl.counted([cut for batch in batches for cut in batch.cuts])

        while not strategy.stop:
            generation, race = strategy.generation, strategy.ask()
            while (wanted := race.ask()) is not None:
                race.tell(*measure(wanted))
            print(f"generation {generation}: KL {race.result.fitness:.6f} nats per token", flush=True)
            strategy.tell(strategy.outcome(race.result))
    for layer, level in space.configuration(strategy.parent).items():
        print(f"{layer}: {level}")
    return f"{space.summary(strategy.parent).bits:.4f} bits after {strategy.reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target-bits", type=float, default=3.0)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--offspring", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8192, help="of the last rung")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    try:
        with stops_by_signal():
            print(f"done: {search(parser.parse_args())}")
    except evoray.EvorayError as error:
        print(f"error: {error}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        print(f"stopped by {stopped}; nothing is kept")
        sys.exit(128 + stopped.signal)


if __name__ == "__main__":
    main()
