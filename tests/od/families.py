"""Tiny pipeline.configs of the model families the OD API evaluates, as text."""

import pathlib

CONV = """conv_hyperparams {{ activation: RELU_6 regularizer {{ l2_regularizer {{ weight: 0.00004 }} }}
  initializer {{ truncated_normal_initializer {{ stddev: 0.03 }} }} {norm} }}"""
NORM = "batch_norm { train: true scale: true center: true decay: 0.9 epsilon: 0.001 }"
NORMED = CONV.format(norm=NORM)
PLAIN = CONV.format(norm="")
SSD_PARTS = """
  box_coder {{ faster_rcnn_box_coder {{ y_scale: 10 x_scale: 10 height_scale: 5 width_scale: 5 }} }}
  matcher {{ argmax_matcher {{ matched_threshold: 0.5 unmatched_threshold: 0.5
    force_match_for_each_row: true use_matmul_gather: true }} }}
  similarity_calculator {{ iou_similarity {{}} }}
  encode_background_as_zeros: true
  anchor_generator {{ multiscale_anchor_generator {{ min_level: {low} max_level: {high}
    anchor_scale: 3.0 aspect_ratios: 1.0 aspect_ratios: 2.0 scales_per_octave: 1 }} }}
  loss {{ classification_loss {{ weighted_sigmoid_focal {{ alpha: 0.25 gamma: 2.0 }} }}
    localization_loss {{ weighted_smooth_l1 {{}} }}
    classification_weight: 1.0 localization_weight: 1.0 }}
  normalize_loss_by_num_matches: true normalize_loc_loss_by_codesize: true
  post_processing {{ batch_non_max_suppression {{ score_threshold: {threshold} iou_threshold: 0.6
    max_detections_per_class: 100 max_total_detections: 100 {nms} }} score_converter: SIGMOID }}
"""


def ssd_fpn(threshold=1e-8):
    """SSD MobileNet v2 with a feature pyramid."""
    parts = SSD_PARTS.format(low=4, high=6, threshold=threshold, nms="")
    return """ssd {{ num_classes: 2 freeze_batchnorm: false {parts}
  image_resizer {{ fixed_shape_resizer {{ height: 96 width: 96 }} }}
  box_predictor {{ weight_shared_convolutional_box_predictor {{ depth: 16 num_layers_before_predictor: 1
    kernel_size: 3 class_prediction_bias_init: -2.0 {norm} }} }}
  feature_extractor {{ type: 'ssd_mobilenet_v2_fpn_keras' depth_multiplier: 0.25 min_depth: 8
    use_depthwise: true fpn {{ min_level: 4 max_level: 6 additional_layer_depth: 16 }}
    override_base_feature_extractor_hyperparams: true {norm} }} }}""".format(
        parts=parts, norm=NORMED
    )


def efficientdet(nms):
    """EfficientDet: SSD on EfficientNet b0 with a small BiFPN.

    The BiFPN wants a level above the backbone's last, which is 5, and each level to be exactly
    half of the one below: the image's size must be a multiple of 64.
    """
    parts = SSD_PARTS.format(low=4, high=6, threshold=1e-8, nms=nms)
    norm = NORMED.replace("RELU_6", "SWISH")
    return """ssd {{ num_classes: 2 freeze_batchnorm: false add_background_class: false {parts}
  image_resizer {{ keep_aspect_ratio_resizer {{ min_dimension: 192 max_dimension: 192
    pad_to_max_dimension: true }} }}
  box_predictor {{ weight_shared_convolutional_box_predictor {{ depth: 16 use_depthwise: true
    num_layers_before_predictor: 1 kernel_size: 3 class_prediction_bias_init: -2.0 {norm} }} }}
  feature_extractor {{ type: 'ssd_efficientnet-b0_bifpn_keras'
    bifpn {{ min_level: 4 max_level: 6 num_iterations: 1 num_filters: 16 }} {norm} }} }}""".format(
        parts=parts, norm=norm
    )


ANY_SHAPE = "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 }"
ONE_SHAPE = "fixed_shape_resizer { height: 64 width: 96 }"


def faster_rcnn(resizer=ANY_SHAPE, masks="", post=""):
    """Faster R-CNN on ResNet 50; with `masks`, Mask R-CNN."""
    nms = """batch_non_max_suppression {{ score_threshold: 0.0 iou_threshold: 0.6
      max_detections_per_class: {count} max_total_detections: {count} }}"""
    return """faster_rcnn {{ num_classes: 2 {post}
  image_resizer {{ {resizer} }}
  feature_extractor {{ type: 'faster_rcnn_resnet50_keras' batch_norm_trainable: true }}
  first_stage_anchor_generator {{ grid_anchor_generator {{ scales: 0.125 scales: 0.25
    aspect_ratios: 1.0 height_stride: 16 width_stride: 16 }} }}
  first_stage_box_predictor_conv_hyperparams {{ op: CONV initializer {{
    truncated_normal_initializer {{ stddev: 0.01 }} }} }}
  first_stage_nms_score_threshold: 0.0 first_stage_nms_iou_threshold: 0.7
  first_stage_max_proposals: 8 first_stage_localization_loss_weight: 2.0
  first_stage_objectness_loss_weight: 1.0
  initial_crop_size: 7 maxpool_kernel_size: 1 maxpool_stride: 1
  second_stage_box_predictor {{ mask_rcnn_box_predictor {{ fc_hyperparams {{ op: FC initializer {{
    variance_scaling_initializer {{ factor: 1.0 uniform: true mode: FAN_AVG }} }} }} {masks} }} }}
  second_stage_post_processing {{ {nms} score_converter: SOFTMAX }}
  second_stage_localization_loss_weight: 2.0 second_stage_classification_loss_weight: 1.0
  second_stage_batch_size: 8 }}""".format(
        resizer=resizer, masks=masks, post=post, nms=nms.format(count=50)
    )


def mask_rcnn():
    """Mask R-CNN with padded images."""
    masks = """mask_height: 9 mask_width: 9 mask_prediction_conv_depth: 8
      mask_prediction_num_conv_layers: 2 predict_instance_masks: true
      conv_hyperparams { op: CONV initializer { truncated_normal_initializer { stddev: 0.01 } } }"""
    post = "number_of_stages: 3 second_stage_mask_prediction_loss_weight: 4.0"
    return faster_rcnn(ONE_SHAPE, masks, post)


def center_net():
    """CenterNet on the smallest hourglass, boxes and keypoints of one class."""
    heat = "classification_loss { penalty_reduced_logistic_focal_loss { alpha: 2.0 beta: 4.0 } }"
    return """center_net {{ num_classes: 2
  feature_extractor {{ type: 'hourglass_10' channel_means: 104.0 channel_means: 114.0
    channel_means: 117.0 channel_stds: 74.0 channel_stds: 70.0 channel_stds: 70.0 bgr_ordering: true }}
  image_resizer {{ keep_aspect_ratio_resizer {{ min_dimension: 96 max_dimension: 96
    pad_to_max_dimension: true }} }}
  object_detection_task {{ task_loss_weight: 1.0 offset_loss_weight: 1.0 scale_loss_weight: 0.1
    localization_loss {{ l1_localization_loss {{}} }} }}
  object_center_params {{ object_center_loss_weight: 1.0 max_box_predictions: 100
    min_box_overlap_iou: 0.7 {heat} }}
  keypoint_label_map_path: "label_map.pbtxt"
  keypoint_estimation_task {{ task_name: "rect_points" task_loss_weight: 1.0
    keypoint_class_name: "rect" keypoint_regression_loss_weight: 0.1
    keypoint_heatmap_loss_weight: 1.0 keypoint_offset_loss_weight: 0.5
    loss {{ localization_loss {{ l1_localization_loss {{}} }} {heat} }}
    keypoint_label_to_std {{ key: "top" value: 0.5 }} keypoint_label_to_std {{ key: "bottom" value: 0.5 }}
    keypoint_label_to_std {{ key: "left" value: 0.5 }} keypoint_label_to_std {{ key: "right" value: 0.5 }}
  }} }}""".format(heat=heat)


MOMENTUM = "momentum_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } }"


def pipeline(
    model,
    metrics,
    batch=2,
    averages=False,
    reader="",
    evaluation="",
    inputs=("val",),
    label_map="label_map.pbtxt",
):
    """Returns a whole pipeline.config as text."""
    readers = "".join(
        """eval_input_reader {{ name: "{name}" label_map_path: "{label_map}" shuffle: false
  num_epochs: 1 drop_remainder: false {reader}
  tf_record_input_reader {{ input_path: "{name}.tfrecord" }} }}\n""".format(
            name=name, reader=reader, label_map=label_map
        )
        for name in inputs
    )
    sets = " ".join('metrics_set: "{}"'.format(name) for name in metrics)
    flag = "true" if averages else "false"
    return """model {{ {model} }}
train_config {{ batch_size: 2 num_steps: 2 max_number_of_boxes: 10 unpad_groundtruth_tensors: false
  optimizer {{ {momentum} use_moving_average: {flag} moving_average_decay: 0.5 }} }}
train_input_reader {{ label_map_path: "label_map.pbtxt" {reader}
  tf_record_input_reader {{ input_path: "train.tfrecord" }} }}
eval_config {{ {sets} use_moving_averages: {flag} batch_size: {batch} num_visualizations: 2
  min_score_threshold: 0.01 max_num_boxes_to_visualize: 5
  {evaluation} }}
{readers}""".format(
        model=model,
        momentum=MOMENTUM,
        flag=flag,
        reader=reader,
        sets=sets,
        batch=batch,
        evaluation=evaluation,
        readers=readers,
    )


COCO = "coco_detection_metrics"
MASKS = "load_instance_masks: true mask_type: PNG_MASKS"
KEYPOINTS = "num_keypoints: 4"
KEYPOINT_METRICS = """parameterized_metric { coco_keypoint_metrics { class_label: "rect"
  keypoint_label_to_sigmas { key: "top" value: 0.1 } keypoint_label_to_sigmas { key: "bottom" value: 0.1 }
  keypoint_label_to_sigmas { key: "left" value: 0.1 } keypoint_label_to_sigmas { key: "right" value: 0.1 }
} }"""
VOC = ("pascal_voc_detection_metrics", "weighted_pascal_voc_detection_metrics")
OPEN_IMAGES = (
    "oid_V2_detection_metrics",
    "precision_at_recall_detection_metrics",
    "oid_challenge_detection_metrics",
)
INSTANCES = (
    "coco_mask_metrics",
    "lvis_mask_metrics",
    "pascal_voc_instance_segmentation_metrics",
    "weighted_pascal_voc_instance_segmentation_metrics",
    "oid_challenge_segmentation_metrics",
)
ONE_FOR_ALL = "use_class_agnostic_nms: true max_classes_per_detection: 1"

FAMILIES = {
    "ssd_fpn_ema": pipeline(
        ssd_fpn(), [COCO, *VOC, *OPEN_IMAGES], batch=6, averages=True, inputs=("val", "other")
    ),
    # One image in a batch: as many at once as change no bit.
    "ssd_fpn_ema_alone": pipeline(ssd_fpn(), [COCO, *VOC, *OPEN_IMAGES], batch=1, averages=True),
    "ssd_fpn_nothing_found": pipeline(ssd_fpn(threshold=0.9999), [COCO], batch=1),
    "faster_rcnn": pipeline(faster_rcnn(), [COCO], batch=1, inputs=("other",)),
    "class_agnostic": pipeline(faster_rcnn(ONE_SHAPE, post="number_of_stages: 1"), [COCO], batch=2),
    "mask_rcnn": pipeline(mask_rcnn(), [COCO, *INSTANCES], batch=1, reader=MASKS),
    "center_net": pipeline(
        center_net(), [COCO], batch=1, reader=KEYPOINTS, evaluation=KEYPOINT_METRICS
    ),
    # Both classes shown by one name, and a metrics set listed twice.
    "efficientdet": pipeline(
        efficientdet(nms=ONE_FOR_ALL),
        [COCO, COCO, VOC[0]],
        batch=1,
        inputs=("val", "other"),
        label_map="one_name.pbtxt",
    ),
}

# Trained by the OD API's own loop; the others are scored as they were initialised, or from
# another family's checkpoint where only the evaluation differs.
TRAINED = ("ssd_fpn_ema",)
SAME_MODEL = {"ssd_fpn_nothing_found": "ssd_fpn_ema", "ssd_fpn_ema_alone": "ssd_fpn_ema"}

# The sets of `shapes.py` that the readers above name.
_SHAPES = {"size": (100, 120), "empty_every": 5}
SHAPES = {
    "train": {**_SHAPES, "images": 8, "empty_every": 0, "flags": False},
    "val": {**_SHAPES, "images": 6, "seed": 2},
    "other": {**_SHAPES, "images": 9, "seed": 3, "vary_size": True},
}

# What the start request says besides; without it the decoded eval set stays in memory.
PLUGINS = str(pathlib.Path(__file__).resolve().parent / "metric_plugins.py")
REQUESTS = {
    "mask_rcnn": {"metric_plugins": [PLUGINS + ":mask_places"]},
    "efficientdet": {"sample_1_of_n": 2},
    "ssd_fpn_ema": {"cache_bytes": 1},
    "faster_rcnn": {"cache_bytes": 1, "cache_on_disk": False},
}
