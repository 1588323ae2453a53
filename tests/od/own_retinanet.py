"""An experiment as a user of Model Garden writes one: `my_retinanet`, with a task of its own."""

import dataclasses

from official.core import exp_factory, task_factory
from official.vision.configs import retinanet as configs
from official.vision.tasks import retinanet


@dataclasses.dataclass
class MyTask(configs.RetinaNetTask):
    """What RetinaNet's task takes."""


@task_factory.register_task_cls(MyTask)
class MyRetinaNet(retinanet.RetinaNetTask):
    """RetinaNet, with a metric that it makes of COCO's and one of the model's."""

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        """Adds the two metrics."""
        logs = super().reduce_aggregated_logs(aggregated_logs, global_step)
        weight = self.my_model.trainable_variables[0].numpy().ravel()[0]
        return {**logs, "AP_twice": 2 * logs["AP"], "first_weight": weight}

    def build_model(self):
        """Keeps the model."""
        self.my_model = super().build_model()
        return self.my_model


@exp_factory.register_config_factory("my_retinanet")
def my_retinanet():
    """Returns RetinaNet's configuration, for the task of one's own."""
    config = configs.retinanet_resnetfpn_coco()
    task = MyTask()
    task.override(config.task.as_dict(), is_strict=False)
    config.task = task
    return config
