"""The tutorial's experiment, and the list of everything that can be set.

    python -m mnist_cnn.main --config experiments/base.py

One epoch of Adam on all 60,000 training images.  Any field can be given on the command line, as
in --config.learning_rate=3e-4; another experiment is a file that states what differs:
mnist_cnn.experiment(name="mine", num_epochs=5).
"""

import mnist_cnn


def get_config():
    return mnist_cnn.experiment(
        name="base",  # the experiment's name, in result.json and in runs/<name>-<time>
        seed=1337,  # 0 to 2**31 - 1; everything random follows from it
        num_seeds=1,  # so many networks, of the seeds from `seed` on: a mean and its interval
        sweep=None,  # {"learning_rate": [1e-4, 1e-3]}: each of the grid; validation chooses
        #
        # Data
        dataset="mnist",  # mnist (in the package), fashion_mnist or kmnist (downloaded)
        manual_dir=None,  # a folder that holds the four IDX files instead, gzipped or raw
        train_split="train",  # a part of the training images, as tfds writes it: "train[:55000]"
        validation_split=None,  # another part, to watch: "train[55000:]"
        #
        # Network, loss, optimiser: a name, or in an experiment file an object of one's own
        model="cnn",  # or any flax.linen module: images [B, 28, 28, 1] in 0..1 -> logits [B, 10]
        init_from=None,  # a file of weights to begin with: .safetensors, Keras' .keras, .weights.h5
        loss="cross_entropy",  # or a function (logits [B, 10], labels [B]) -> losses [B]
        optimizer="adam",  # or a function learning_rate -> optax.GradientTransformation
        compute_dtype="float32",  # or bfloat16: the network's products; parameters stay float32
        learning_rate=1e-3,  # above 0; Keras' default for Adam
        b1=0.9,  # Adam's, as optax names them: the decay of the mean of the gradients,
        b2=0.999,  # of their squares,
        eps=1e-8,  # and what is added to the root of these
        weight_decay=0.0,  # decoupled (AdamW); times the learning rate
        label_smoothing=0.0,  # this part of the target is spread over all classes
        schedule="constant",  # or cosine: the learning rate falls to 0 at the end,
        warmup_steps=0,  # after it rose to its whole in that many steps
        ema=0.0,  # above 0, such as 0.999: an average over the steps is evaluated, of that decay
        #
        # What happens to training images at random; 0: nothing
        rotation=0.0,  # up to so many degrees, either way
        zoom=0.0,  # height and width up to this part larger or smaller, each its own
        shear=0.0,  # up to so many columns for each row from the middle
        shift=0.0,  # up to so many pixels down or up, and right or left
        #
        # Length
        batch_size=32,  # images a step; the last batch of an epoch may be smaller
        num_epochs=1,  # passes over the training images
        num_steps=None,  # if given, that many steps instead
        #
        # What is written when, in steps
        log_every=100,  # the training loss and accuracy since the last time
        eval_every=None,  # the validation split; None: after every epoch
        eval_batch_size=250,  # images at a time in an evaluation; changes no result
        checkpoint_every=500,  # and at the end
        keep=2,  # how many checkpoints stay; at least 2
        report=True,  # at the end, report.html: the result in pictures
        #
        # How the devices are used; None: all of them, replicas first, then each batch in parts
        mesh=None,  # "2x4": 2 groups of devices for replicas x 4 devices for a batch
        replicas_at_once=None,  # on an accelerator as many as fit, on a CPU one a device
        profile=False,  # the time line of steps 20 to 40, and the work of a step
        smoke=False,  # instead of a run: try in seconds whether everything works here
    )
