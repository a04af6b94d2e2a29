"""Steps on several workers against steps on one; workers that are lost; trainings that go on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from utils import arcface, data, networks
from utils.__main__ import main
from utils.commands import train
from utils.networks import replicas

WORKER = """
import sys
import numpy as np
from utils.networks import replicas
from utils.repro import keras

out, trains, n_steps = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
with replicas.strategy().scope():
    keras.utils.set_random_seed(0)
    image, label = keras.Input((16, 16, 3)), keras.Input((), dtype="int32")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    for stride in (2, 1):
        x = keras.layers.Conv2D(8, 3, strides=stride, use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9, trainable=trains)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Dense(3, kernel_regularizer="l2")(keras.layers.GlobalAveragePooling2D()(x))
    trainer = keras.Model([image, label], x)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-4, 20), amsgrad=True)
    step = replicas.stepper(trainer, optimizer)
    for i in range(n_steps):
        rng = np.random.default_rng([0, i])
        loss = step(rng.uniform(0, 255, (8, 16, 16, 3)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32))
        if i == 3:
            print("going", flush=True)
    replicas.wait_for_all()
np.savez(out, *trainer.get_weights(), loss=loss)
"""


FIT = """
import sys
import numpy as np
from utils import arcface, data, networks
from utils.faster_gradcam import FasterGradCAM
from utils.networks import graph, replicas

out, replicas.PORT = sys.argv[1], int(sys.argv[2])
how = {"n_clusters": 2, "weighting": "contrast", "detail_layer": "stage_2_block_1_relu"}
with replicas.strategy().scope():
    network = networks.embedding_network(networks.Spec("small_resnet", image_size=48, embedding_size=4))
    dataset = data.load_janken("synthetic", image_size=48, n_images=75)
    lengths = [part.shape[0] for part in graph.in_batches(network, dataset.images, batch_size=16)]
    fitted = FasterGradCAM.fit(network, dataset.images, dataset.labels, **how)
    accuracy = arcface.accuracy(fitted.classifier(), dataset.images, dataset.labels)
found = fitted.clusters.centroids, fitted.channel_weights, fitted.prototypes, fitted.detail_weights, accuracy
np.savez(out, *found, *network.get_weights(), lengths=lengths)
replicas.wait_for_all()
"""


def ports(n):
    """Ports of this machine that are free."""
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers


def slurm(n_workers, index):
    """What a step of SLURM finds in its environment, all tasks on this machine."""
    return {
        "SLURM_STEP_NUM_TASKS": str(n_workers), "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(index),
        "SLURM_STEP_TASKS_PER_NODE": str(n_workers), "SLURMD_NODENAME": "localhost", "SLURM_LOCALID": str(index),
    }


def start(n_workers, *words, by_slurm=False):
    """Processes that work together, each a function of its number: words of the command line."""
    hosts = [f"127.0.0.1:{port}" for port in ports(n_workers)]
    found = []
    for index in range(n_workers):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        told = slurm(n_workers, index) if by_slurm else {"TF_CONFIG": json.dumps(config)}
        environment = os.environ | (told if n_workers > 1 else {})
        command = [sys.executable, *(str(word(index)) if callable(word) else str(word) for word in words)]
        found.append(subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ))
    return found


def finish(processes):
    ends = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ends
    return ends


def weights(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
@pytest.mark.parametrize("trains", [True, False])
def test_two_workers_take_the_steps_of_one(trains, tmp_path):
    """20 steps, with batch normalisation that trains and that does not."""
    finish(start(1, "-c", WORKER, tmp_path / "one.npz", trains, 20))
    finish(start(2, "-c", WORKER, lambda i: tmp_path / f"two{i}.npz", trains, 20))
    one, two, other = (weights(tmp_path / f"{name}.npz") for name in ("one", "two0", "two1"))
    for a, b, c in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(b, c)
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)


@pytest.mark.slow
def test_two_devices_of_a_machine_take_the_steps_of_one(tmp_path):
    devices = (
        "from utils.repro import tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
    )
    chosen = WORKER.replace("replicas.strategy()", "tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])")
    finish(start(1, "-c", WORKER, tmp_path / "one.npz", True, 20))
    finish(start(1, "-c", devices + chosen, tmp_path / "two.npz", True, 20))
    for a, b in zip(weights(tmp_path / "one.npz"), weights(tmp_path / "two.npz"), strict=True):
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_other_with_one_sentence(tmp_path):
    first, second = start(2, "-c", CAUGHT + WORKER, lambda i: tmp_path / f"{i}.npz", True, 100000)
    assert first.stdout.readline() == "going\n"
    second.send_signal(signal.SIGKILL)
    begin = time.time()
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2 and time.time() - begin < 30
    assert error.splitlines()[-1].startswith("error: Another worker is lost"), error
    assert "Traceback" not in error


@pytest.mark.slow
def test_two_workers_share_a_harvest_and_an_evaluation(tmp_path):
    """As SLURM starts them; both know all, bit for bit what one process finds."""
    words = "-c", FIT, lambda i: tmp_path / f"{i}.npz"
    finish(start(2, *words, ports(1)[0], by_slurm=True))
    finish(start(1, "-c", FIT, tmp_path / "one.npz", 0))
    lengths, *one = weights(tmp_path / "one.npz")
    assert lengths.tolist() == [16, 16, 16, 16, 11]
    for name in "01":
        lengths, *shared = weights(tmp_path / f"{name}.npz")
        assert lengths.tolist() == [32, 32, 11]
        for a, b in zip(one, shared, strict=True):
            np.testing.assert_array_equal(a, b)


CAUGHT = """
import sys
def end(kind, error, trace):
    print(f"error: {error}" if kind is OSError else f"{kind} Traceback {error}", file=sys.stderr, flush=True)
    import os
    os._exit(2)
sys.excepthook = end
"""


# --- a training that goes on -------------------------------------------------------------------------------------

HOW = {"steps": 12, "batch_size": 8, "evaluations": 4, "learning_rate": 3e-3, "augmentation": 0.2}
OPTIONS = (
    "-m", "utils", "train", "--data", "synthetic", "--n-images", 60, "--image-size", 32, "--backbone", "small_resnet",
    "--weights", "none", "--clusters", 2, "--steps", 40, "--batch-size", 8,
)


class Stop(Exception):
    pass


def stop_at(step):
    def stop(entry):
        if entry["done"] == step:
            raise Stop

    return stop


@pytest.fixture(scope="module")
def dataset():
    return data.load_janken("synthetic", image_size=32, n_images=30)


def network():
    return networks.embedding_network(networks.Spec("small_resnet", image_size=32))


def without_times(history):
    return [{name: value for name, value in entry.items() if not name.startswith("seconds")} for entry in history]


@pytest.mark.parametrize("average", [pytest.param(0, marks=pytest.mark.slow), 20])
def test_a_training_that_was_stopped_ends_in_the_same_weights(average, dataset, tmp_path):
    whole = arcface.train(network(), dataset, average=average, **HOW)
    with pytest.raises(Stop):
        arcface.train(
            network(), dataset, average=average, checkpoint=tmp_path / "c.npz", progress=stop_at(6), **HOW
        )
    rest = []
    resumed = arcface.train(
        network(), dataset, average=average, checkpoint=tmp_path / "c.npz", progress=rest.append, **HOW
    )
    assert [entry["done"] for entry in rest] == [9, 12]
    for a, b in zip(whole.network.get_weights(), resumed.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(whole.history) == without_times(resumed.history) and whole.best_step == resumed.best_step
    assert arcface.train(network(), dataset, average=average, checkpoint=tmp_path / "c.npz", **HOW).best_step


def test_a_checkpoint_of_another_training_or_a_damaged_one(dataset, tmp_path):
    file = tmp_path / "c.npz"
    arcface.train(network(), dataset, checkpoint=file, **HOW)
    with pytest.raises(ValueError, match="is of a training with another steps; leave out --resume to start anew"):
        arcface.train(network(), dataset, checkpoint=file, **HOW | {"steps": 13})
    content = file.read_bytes()
    for damaged in (content[:-100], b"", b"no zip"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged; leave out --resume to start anew"):
            arcface.train(network(), dataset, checkpoint=file, **HOW)


def test_settings_that_cannot_be(tmp_path, monkeypatch, capsys):
    assert main(["train", "--data", "synthetic", "--resume", "--out", str(tmp_path)]) == 2
    assert "There is no training to go on with in" in capsys.readouterr().err
    for text in ("nonsense", "[]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        assert main(["train", "--data", "synthetic", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: TF_CONFIG must be as {"cluster"') and error.count("\n") == 1


def test_workers_that_slurm_names(monkeypatch, tmp_path, capsys):
    """Hosts come sorted by name, n10 before n2; who this is does not depend on that."""
    for name, value in slurm(4, 3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[2,10]")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    found = replicas._slurm_cluster("4", "n10", "1")
    hosts = ["n10:29500", "n10:29501", "n2:29500", "n2:29501"]
    assert found.cluster_spec().as_dict() == {"worker": hosts}
    assert (found.task_type, found.task_id) == ("worker", 1)
    assert replicas._slurm_cluster("4", "n2", "0").task_id == 2
    assert replicas._place(found) == (1, 4)
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert main(["train", "--data", "synthetic", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: SLURM does not tell the workers and which one this is: ") and error.count("\n") == 1


def test_one_process_shares_with_nobody():
    assert [part.tolist() for part in replicas.in_shares(lambda i: np.full(i, i), iter([2, 0]))] == [[2, 2], []]


def test_a_batch_that_cannot_be_shared(monkeypatch):
    class Three:
        num_replicas_in_sync = 3

    monkeypatch.setattr(replicas, "strategy", Three)
    with pytest.raises(ValueError, match="must be a multiple of the 3 replicas. Received: 32"):
        replicas.check_batch(32)


def test_one_device_is_the_chief_and_waits_for_nobody():
    assert replicas.is_chief() and replicas.strategy().num_replicas_in_sync == 1
    replicas.wait_for_all()


@pytest.mark.slow
def test_train_on_two_workers_is_killed_and_resumed(tmp_path):
    """The other one ends with one sentence; with --resume both go on, and the chief writes what a whole run writes."""
    finish(start(2, *OPTIONS, "--out", tmp_path / "whole"))
    out = tmp_path / "cut"
    first, second = start(2, *OPTIONS, "--out", out)
    while not (out / train.CHECKPOINT).exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second.kill()
    begin = time.time()
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2 and time.time() - begin < 30
    assert error.splitlines()[-1].startswith("error: Another worker is lost") and "Traceback" not in error
    assert not (out / "meta.json").exists()
    ends = finish(start(2, *OPTIONS, "--resume", "--out", out))
    assert "saved in" in ends[0][0] and "saved in" not in ends[1][0]
    assert not (out / train.CHECKPOINT).exists()
    names = ("whole", "cut")
    whole, cut = (data_of(tmp_path / name) for name in names)
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)


def data_of(folder):
    from utils.faster_gradcam import FasterGradCAM

    return FasterGradCAM.load(folder).network.get_weights()
