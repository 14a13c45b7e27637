"""The tutorial's experiment, and the list of all fields.

    python -m mnist_cnn.main --config experiments/base.py

One epoch of Adam on all 60,000 training images.
Result: 98.52 % test accuracy with seed 1337; experiments/seeds.py has the mean of 30 seeds.
Cost: 35 s on 2 cores of an AMD EPYC.

Every field can be given on the command line, as in --config.learning_rate=3e-4. Another experiment
is a file that states what differs: mnist_cnn.experiment(name="mine", num_epochs=5).
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(
        name="base",  # appears in result.json and in runs/<name>-<time>
        seed=1337,  # 0 to 2**31 - 1; determines everything random
        num_seeds=1,  # networks to train, with the seeds from `seed` on
        sweep=None,  # values to try, {"learning_rate": [1e-4, 1e-3]}; validation chooses
        #
        # Data
        dataset="mnist",  # mnist (in the package), fashion_mnist or kmnist (downloaded)
        manual_dir=None,  # a folder with the four IDX files, gzipped or not, to use instead
        train_split="train",  # training images, in the notation of tfds: "train[:55000]"
        validation_split=None,  # held-out training images to score: "train[55000:]"
        #
        # Network, loss, optimizer: a name, or in an experiment file your own object
        model="cnn",  # or any flax.linen module: images [B, 28, 28, 1] in 0..1 -> logits [B, 10]
        init_from=None,  # a file of initial weights: .safetensors, .keras or .weights.h5
        loss="cross_entropy",  # or a function (logits [B, 10], labels [B]) -> losses [B]
        optimizer="adam",  # or a function learning_rate -> optax.GradientTransformation
        compute_dtype="float32",  # or bfloat16, for the layers; parameters stay float32
        learning_rate=1e-3,  # above 0; Keras' default for Adam
        b1=0.9,  # Adam: the decay of the mean of the gradients,
        b2=0.999,  # the decay of the mean of their squares,
        eps=1e-8,  # and what is added to the square root of the latter
        weight_decay=0.0,  # decoupled (AdamW); times the learning rate
        label_smoothing=0.0,  # the part of the target that is spread over all classes
        schedule="constant",  # or cosine: the learning rate falls to 0 at the end,
        warmup_steps=0,  # after a linear rise over this number of steps
        ema=0.0,  # the decay of averaged weights, such as 0.999; then these are evaluated
        #
        # Random changes of the training images; 0 is no change
        rotation=0.0,  # degrees, up to this angle in either direction
        zoom=0.0,  # relative change of height and of width, independently
        shear=0.0,  # columns per row from the centre
        shift=0.0,  # pixels, vertically and horizontally, independently
        #
        # Length
        batch_size=32,  # images per step; the last batch of an epoch may be smaller
        num_epochs=1,  # passes over the training images
        num_steps=None,  # if given, the number of steps instead
        #
        # Output; all intervals are in steps
        log_every=100,  # training loss and accuracy, over the steps since the last time
        eval_every=None,  # scores of the validation split; None: after every epoch
        eval_batch_size=250,  # images at a time in an evaluation; does not change the result
        checkpoint_every=500,  # and at the end
        keep=2,  # the number of checkpoints to keep; at least 2
        report=True,  # write report.html at the end
        #
        # Devices; None uses all of them, for replicas first, then for parts of each batch
        mesh=None,  # "2x4": 2 groups of devices for replicas x 4 devices for a batch
        replicas_at_once=None,  # None: as many as fit on an accelerator, on a CPU one per device
        profile=False,  # trace steps 20 to 40, and report the operations of a step
        smoke=False,  # do not run: test in seconds whether everything works here
    )
