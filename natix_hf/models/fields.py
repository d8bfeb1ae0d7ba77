"""The fields that the config classes of transformers 5.23 have for each architecture, by the kind of their defaults.

A bundle can so be checked where transformers is not installed, and without waiting for its import. A test holds the
table against the classes. A key of a later version, which is not in the table, is looked up in the class itself.
"""

from __future__ import annotations

# A list has a rule of its own in `natix_hf.models.schema`.
FIELDS: dict[str, dict[str, str]] = {
    "vit": {
        "whole": (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size image_size patch_size "
            "num_channels encoder_stride pooler_output_size"
        ),
        "text": ("hidden_act pooler_act"),
        "number": ("hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps"),
        "flag": ("qkv_bias"),
    },
    "dinov2": {
        "whole": ("hidden_size num_hidden_layers num_attention_heads mlp_ratio image_size patch_size num_channels"),
        "text": ("hidden_act"),
        "number": (
            "hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps layerscale_value "
            "drop_path_rate"
        ),
        "flag": ("qkv_bias use_swiglu_ffn apply_layernorm reshape_hidden_states use_mask_token"),
        "list": ("stage_names out_features out_indices"),
    },
    "dinov2_with_registers": {
        "whole": (
            "hidden_size num_hidden_layers num_attention_heads mlp_ratio image_size patch_size num_channels "
            "num_register_tokens"
        ),
        "text": ("hidden_act"),
        "number": (
            "hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps layerscale_value "
            "drop_path_rate"
        ),
        "flag": ("qkv_bias use_swiglu_ffn apply_layernorm reshape_hidden_states"),
        "list": ("stage_names out_features out_indices"),
    },
    "dinov3_vit": {
        "whole": (
            "patch_size hidden_size intermediate_size num_hidden_layers num_attention_heads image_size "
            "num_channels num_register_tokens"
        ),
        "text": ("hidden_act"),
        "number": (
            "attention_dropout initializer_range layer_norm_eps rope_theta layerscale_value drop_path_rate "
            "pos_embed_rescale"
        ),
        "flag": (
            "query_bias key_bias value_bias proj_bias mlp_bias use_gated_mlp apply_layernorm reshape_hidden_states"
        ),
        "number or null": ("pos_embed_shift pos_embed_jitter"),
        "list": ("stage_names out_features out_indices"),
    },
    "convnextv2": {
        "whole": ("num_channels patch_size num_stages image_size"),
        "list": ("hidden_sizes depths stage_names out_features out_indices"),
        "text": ("hidden_act"),
        "number": ("initializer_range layer_norm_eps drop_path_rate"),
    },
    "swinv2": {
        "whole": ("image_size patch_size num_channels embed_dim window_size encoder_stride num_layers hidden_size"),
        "list": ("depths num_heads pretrained_window_sizes stage_names out_features out_indices"),
        "number": (
            "mlp_ratio hidden_dropout_prob attention_probs_dropout_prob drop_path_rate initializer_range "
            "layer_norm_eps"
        ),
        "flag": ("qkv_bias use_absolute_embeddings"),
        "text": ("hidden_act"),
    },
}
