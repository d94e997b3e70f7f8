"""What a checkpoint is: its family and objective, told from names, shapes and small texts, before any weight is read.

What is not a base model that can be trained here is refused by its own name, with the cure. To refuse one thing more:
add a row to `FOREIGN` (names in a file), `PARTS` (parts of a base model) or `FOREIGN_CLASSES` (folders).
"""

import json
import math
import statistics
from pathlib import Path

from library.contracts import FamilyFacts, ModelInfo
from library.families.table import all_facts, facts_of
from library.families.weights_file import SUFFIXES, Header, read_header, refuse_absent
from library.files import JsonObject
from library.messages import UserError, say

UNET = "model.diffusion_model."


def inspect(path: str | Path) -> ModelInfo:
    """Tell what base model a file or folder is, within milliseconds and without reading its weights.

    Args:
        path: a .safetensors or .ckpt file with the original names, or a diffusers folder.

    Raises:
        UserError: there is nothing, or it is damaged, or it is not a base model that can be trained here.
    """
    refuse_absent(path)
    found = Path(path).expanduser()
    return inspect_folder(found) if found.is_dir() else inspect_file(read_header(found))


# ---- Single files ----

# Substrings of names that occur in no base model, what they tell, and what to do: the first row that fits is said.
NOT_A_BASE = ("Choose a base model (a checkpoint of 2 GB or more).", "请选择底模（通常 2 GB 以上的完整模型）。")
OTHER_LINE = (
    "This program trains SD 1.x, SD 2.x and SDXL (with Pony, Illustrious, NoobAI): choose such a base model.",
    "本程序支持 SD 1.x、SD 2.x 和 SDXL（含 Pony、Illustrious、NoobAI），请换用这类底模。",
)
FOREIGN = (
    (
        "a LoRA",
        "LoRA",
        (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", "lora_linear_layer", ".hada_w1", ".lokr_w")
        + (".oft_blocks", ".oft_diag"),
        (
            "Set the base model here; to continue training a LoRA, set it as `network_weights`.",
            "这里要填底模；若想在已有 LoRA 的基础上继续训练，请把它填在 network_weights。",
        ),
    ),
    ("a ControlNet", "ControlNet", ("control_model.", "controlnet_", "input_hint_block", "zero_convs."), NOT_A_BASE),
    ("an IP-Adapter", "IP-Adapter", ("ip_adapter.", "image_proj."), NOT_A_BASE),
    ("a T2I-Adapter", "T2I-Adapter", ("adapter.body.",), NOT_A_BASE),
    ("an AnimateDiff motion module", "AnimateDiff 运动模块", ("motion_modules.",), NOT_A_BASE),
    ("an embedding (textual inversion)", "embedding（文本反转）", ("string_to_param", "emb_params"), NOT_A_BASE),
    ("an upscaler", "放大模型", ("RRDB_trunk", ".RDB1.", ".rdb1.", "conv_first."), NOT_A_BASE),
    ("Stable Video Diffusion", "Stable Video Diffusion", (".time_stack.", ".time_mixer."), OTHER_LINE),
    ("Playground v2.5", "Playground v2.5", ("edm_mean", "edm_vpred"), OTHER_LINE),
    ("Stable Diffusion 3", "Stable Diffusion 3", ("joint_blocks.",), OTHER_LINE),
    ("FLUX.2", "FLUX.2", ("single_stream_modulation", "double_stream_modulation"), OTHER_LINE),
    ("Chroma", "Chroma", ("distilled_guidance_layer.",), OTHER_LINE),
    ("HunyuanVideo", "HunyuanVideo", ("individual_token_refiner",), OTHER_LINE),
    ("HunyuanDiT", "HunyuanDiT", ("mlp_t5.",), OTHER_LINE),
    ("FLUX", "FLUX", ("double_blocks.0.img_attn", "single_transformer_blocks."), OTHER_LINE),
    ("AuraFlow", "AuraFlow", ("double_layers.", "joint_transformer_blocks."), OTHER_LINE),
    ("Lumina or Z-Image", "Lumina 或 Z-Image", ("cap_embedder.",), OTHER_LINE),
    ("LTX-Video", "LTX-Video", ("patchify_proj.",), OTHER_LINE),
    ("Sana", "Sana", ("attention_y_norm", "caption_norm."), OTHER_LINE),
    ("PixArt", "PixArt", ("adaln_single.", "y_embedder.y_proj"), OTHER_LINE),
    ("Qwen-Image", "Qwen-Image", ("txt_norm.weight",), OTHER_LINE),
    ("HiDream", "HiDream", ("double_stream_blocks.",), OTHER_LINE),
    ("Wan", "Wan", ("head.modulation", "condition_embedder.time_proj"), OTHER_LINE),
    ("Cosmos or Anima", "Cosmos 或 Anima", ("adaln_modulation_self_attn", "t_embedder.1.linear_1"), OTHER_LINE),
    ("Stable Cascade", "Stable Cascade", ("clip_txt_mapper", "down_blocks.1.0.channelwise"), OTHER_LINE),
    (
        "a diffusion transformer",
        "DiT 模型",
        ("transformer_blocks.0.attn.add_q_proj", "blocks.0.adaLN_modulation"),
        OTHER_LINE,
    ),
)

WHOLE_MODEL = (
    "Use the whole model: a checkpoint with U-Net, VAE and text encoder, or the diffusers folder with "
    "model_index.json.",
    "请填写完整的模型：包含 U-Net、VAE 和文本编码器的单个文件，或含 model_index.json 的 diffusers 文件夹。",
)
# Beginnings of names that tell a part of a base model.
PARTS = (
    (
        "a VAE",
        "VAE",
        ("encoder.down", "decoder.up", "decoder.conv_in", "first_stage_model.", "encoder.mid", "decoder.mid"),
        (
            "Set it as `vae`, and a base model here.",
            "请把它填在 vae，这里填底模。",
        ),
    ),
    (
        "a U-Net without text encoder and VAE",
        "单独的 U-Net（没有文本编码器和 VAE）",
        (UNET, "down_blocks.", "diffusion_model.input_blocks.", "input_blocks."),
        WHOLE_MODEL,
    ),
    (
        "a text encoder",
        "文本编码器",
        ("text_model.", "transformer.resblocks.", "encoder.block.", "cond_stage_model.", "conditioner.", "shared.")
        + ("encoder.layers.", "text_encoders."),
        WHOLE_MODEL,
    ),
)


def inspect_file(header: Header) -> ModelInfo:
    shapes, path = header.shapes, header.path
    for facts in all_facts():
        if facts.file_marks and all(mark in shapes for mark in facts.file_marks):
            return info_of_marks(header, facts)
    names = "\n".join(shapes)
    for english, chinese, marks, cure in FOREIGN:
        if any(mark in names for mark in marks):
            raise not_a_base_model(path, english, chinese, cure)
    if is_embedding(shapes):
        raise not_a_base_model(path, "an embedding (textual inversion)", "embedding（文本反转）", NOT_A_BASE)
    first = shapes.get(UNET + "input_blocks.0.0.weight")
    has_text_encoder = any(name.startswith(("cond_stage_model.", "conditioner.embedders.")) for name in shapes)
    if first is None or len(first) != 4 or not has_text_encoder:
        raise what_else(path, shapes)
    refuse_other_inputs(path, first[1])
    family = family_of_shapes(path, shapes)
    objective, source, is_seen = objective_of_file(header, family)
    return ModelInfo(
        path,
        family,
        objective,
        source,
        is_seen,
        layout="single file",
        resolution=facts_of(family).resolutions[objective],
        size_step=facts_of(family).size_step,
        width=facts_of(family).width,
        zero_terminal_snr="ztsnr" in shapes,
        metadata=header.metadata,
    )


def info_of_marks(header: Header, facts: FamilyFacts) -> ModelInfo:
    """Of a file that holds the tensors which are in those of one family alone."""
    objective, resolution = next(iter(facts.resolutions.items()))
    return ModelInfo(
        header.path,
        facts.name,
        objective,
        say(f"as all {facts.title} models", f"{facts.title} 模型都是如此"),
        is_objective_seen=True,
        layout="single file",
        resolution=resolution,
        size_step=facts.size_step,
        width=facts.width,
        metadata=header.metadata,
    )


def image_step(vae_config: JsonObject, unet_config: JsonObject) -> int:
    """Images are whole multiples of this: the VAE's factor times that of the U-Net's downsamplings."""
    return vae_factor(vae_config) * 2 ** (len(unet_config["block_out_channels"]) - 1)


def vae_factor(vae_config: JsonObject) -> int:
    """Pixels to a latent, along a side: 8 in every Stable Diffusion."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def family_of_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Which line of base models these original names and shapes are.

    SD 1.x and 2.x have cross attention in their first block, to captions of width 768 and 1024; SDXL has none there
    but embeds a vector of pooled caption and image sizes: 2816 wide, 2560 in the refiner.
    """
    vector = shapes.get(UNET + "label_emb.0.0.weight")
    caption = shapes.get(UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    if any(name.startswith("conditioner.embedders.1.") for name in shapes):
        return "sdxl"
    if caption is None and vector is not None:
        raise not_a_base_model(path, "the SDXL refiner", "SDXL refiner（精修模型）", SDXL_BASE)
    if vector is not None:
        raise not_a_base_model(path, "SD 2.1 unCLIP", "SD 2.1 unCLIP", OTHER_LINE)
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "sd2"
    return "sd1"


SDXL_BASE = (
    "Train on the SDXL base model instead; the refiner only finishes images.",
    "请改用 SDXL base 模型；refiner 只用于精修出图，不作底模。",
)


def refuse_other_inputs(path: Path, in_channels: object) -> None:
    """A text-to-image U-Net sees 4 channels of latents; others see an image or a mask besides."""
    if in_channels == 4:
        return
    english, chinese = {
        "9": ("an inpainting model", "局部重绘（inpainting）模型"),
        "8": ("an instruct-pix2pix model", "instruct-pix2pix（指令修图）模型"),
        "5": ("a depth-to-image model", "深度图（depth2img）模型"),
        "7": ("the x4 upscaler", "x4 放大模型"),
    }.get(str(in_channels), ("a model of another kind", "其他种类的模型"))
    cure = (
        "Train the LoRA on the plain text-to-image model of the same family; it works here too.",
        "请用同系列的普通文生图底模训练，得到的 LoRA 也能用在这个模型上。",
    )
    detail = (f" (its U-Net takes {in_channels} channels, not 4)", f"（U-Net 输入 {in_channels} 通道，而不是 4）")
    raise not_a_base_model(path, english + detail[0], chinese + detail[1], cure)


def is_embedding(shapes: dict[str, tuple[int, ...]]) -> bool:
    """A handful of vectors as wide as a caption's: one or two tensors and nothing else."""
    widths = {shape[-1] for shape in shapes.values() if shape}
    return 0 < len(shapes) <= 2 and widths <= {768, 1024, 1280} and all(len(s) <= 2 for s in shapes.values())


def what_else(path: Path, shapes: dict[str, tuple[int, ...]]) -> UserError:
    """The error for a file without U-Net or without text encoder: which part it is, or what it begins with."""
    for english, chinese, beginnings, cure in PARTS:
        if any(name.startswith(beginnings) for name in shapes):
            return not_a_base_model(path, english, chinese, folder_cure(path, cure))
    begins = ", ".join(list(shapes)[:3]) or "-"
    return UserError(
        say(
            f"{path}: this is not a base model that can be trained here (its {len(shapes)} tensors begin with: "
            f"{begins}). {OTHER_LINE[0]}",
            f"{path}：这不是能用来训练的底模（共 {len(shapes)} 个张量，开头是：{begins}）。{OTHER_LINE[1]}",
        )
    )


def folder_cure(path: Path, cure: tuple[str, str]) -> tuple[str, str]:
    """If a part of a diffusers folder was given: name that folder."""
    for parent in list(path.absolute().parents)[:2]:
        if (parent / "model_index.json").is_file():
            return f"Use the folder of the whole model: {parent}", f"请填写整个模型的文件夹：{parent}"
    return cure


def not_a_base_model(path: Path, english: str, chinese: str, cure: tuple[str, str]) -> UserError:
    return UserError(
        say(
            f"{path}: this is {english}, not a base model that can be trained here. {cure[0]}",
            f"{path}：这是{' ' if chinese[0].isascii() else ''}{chinese}，不是能用来训练的底模。{cure[1]}",
        )
    )


def objective_of_file(header: Header, family: str) -> tuple[str, str, bool]:
    """(objective, where it was seen, whether anything tells it) of a single file.

    Weights alone do not tell what a U-Net predicts. In this order: the marker key `v_pred` (NoobAI and other SDXL
    files carry it), the header's modelspec.* and ss_* metadata, the .yaml beside the file (as A1111 reads), for SD 2.x
    the spread of one bias (as ComfyUI decides: above 0.09 in the 768-v models), and else epsilon.
    """
    if "v_pred" in header.shapes:
        return "v", say("the file carries the key v_pred", "文件里带有 v_pred 标记"), True
    for key, value in (
        (key, header.metadata[key])
        for key in ("modelspec.prediction_type", "modelspec.architecture", "ss_base_model_version")
        if key in header.metadata
    ):
        objective = objective_of_metadata(key, value)
        if objective:
            return objective, say(f"its metadata: {key} = {value}", f"元数据 {key} = {value}"), True
    config = header.path.with_suffix(".yaml")
    if config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace").replace('"', "").replace("'", "")
        if "parameterization: v" in text:
            return "v", say(f"{config.name} beside the file", f"同名的 {config.name}"), True
    bias = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    spread = spread_of(header, bias) if family == "sd2" else None
    if spread is not None:
        objective = "v" if spread > 0.09 else "epsilon"
        return (
            objective,
            _guessed_by_spread(spread, objective),
            True,
        )
    return "epsilon", say("no mark of v-prediction in the file", "文件里没有 v 预测的标记"), False


def spread_of(header: Header, name: str) -> float | None:
    """The standard deviation of a small tensor's numbers; None where there is no such tensor, or it is damaged."""
    if not 0 < math.prod(header.shapes.get(name, (0,))) <= 100_000:
        return None
    values = header.values(name)
    return statistics.pstdev(values) if all(map(math.isfinite, values)) else None


def objective_of_metadata(key: str, value: str) -> str | None:
    """What one entry of the metadata says of the objective, if anything."""
    if key == "modelspec.prediction_type":
        return {"v": "v", "v_prediction": "v", "epsilon": "epsilon", "eps": "epsilon"}.get(value.strip().lower())
    if key == "modelspec.architecture":
        return "v" if "768-v" in value else None
    return "v" if value.endswith("_v") else None


# ---- Folders ----

FOREIGN_CLASSES = (  # words in a pipeline's class name
    ("Inpaint", "an inpainting model", "局部重绘（inpainting）模型"),
    ("Pix2Pix", "an instruct-pix2pix model", "instruct-pix2pix（指令修图）模型"),
    ("Upscale", "an upscaler", "放大模型"),
    ("UnCLIP", "an unCLIP model", "unCLIP 模型"),
    ("ImageVariation", "an image variation model", "图像变体模型"),
    ("Video", "a video model", "视频模型"),
)
PART_CLASSES = (  # words in the class name of a folder that holds one part
    ("ControlNet", "a ControlNet", "ControlNet"),
    ("Autoencoder", "a VAE", "VAE"),
    ("UNet", "a U-Net alone", "单独的 U-Net"),
    ("CLIP", "a text encoder", "文本编码器"),
    ("T5", "a text encoder", "文本编码器"),
    ("Transformer", "a diffusion transformer", "DiT 模型"),
)


def inspect_folder(folder: Path) -> ModelInfo:
    index = read_json(folder / "model_index.json")
    if index is None:
        raise not_a_whole_folder(folder)
    pipeline = str(index.get("_class_name"))
    unet = read_json(folder / "unet" / "config.json")
    if unet is None:
        for word, english, chinese in FOREIGN_CLASSES:
            if word in pipeline:
                raise not_a_base_model(folder, english, chinese, OTHER_LINE)
        if pipeline.startswith("StableDiffusion") and not pipeline.startswith("StableDiffusion3"):
            raise UserError(
                say(
                    f"{folder}: unet/config.json is missing; the download is not complete. Download it again.",
                    f"{folder}：缺少 unet/config.json，文件夹没有下载完整，请重新下载。",
                )
            )
        kind = pipeline.removesuffix("Pipeline")
        raise not_a_base_model(folder, f"a {kind} model", f"{kind} 模型", OTHER_LINE)
    refuse_other_inputs(folder, unet.get("in_channels", 4))
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        raise not_a_base_model(folder, f"a {pipeline} model", f"{pipeline} 模型", OTHER_LINE)
    if unet.get("_class_name") not in (None, "UNet2DConditionModel"):
        raise not_a_base_model(folder, f"a {pipeline} model", f"{pipeline} 模型", OTHER_LINE)
    if unet.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir():
            raise not_a_base_model(folder, "the SDXL refiner", "SDXL refiner（精修模型）", SDXL_BASE)
        family = "sdxl"
    else:
        family = "sd2" if unet.get("use_linear_projection") else "sd1"
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json") or {}
    kind = scheduler.get("prediction_type")
    objective = {"v_prediction": "v", "epsilon": "epsilon", "None": "epsilon"}.get(str(kind))
    if objective is None or "EDM" in str(scheduler.get("_class_name")):
        raise UserError(_other_prediction(folder, kind, scheduler.get("_class_name")))
    source = (
        f"scheduler_config.json: prediction_type = {kind}"
        if kind
        else say("scheduler_config.json names no prediction_type", "scheduler_config.json 没有写 prediction_type")
    )
    vae = read_json(folder / "vae" / "config.json")
    if vae is None or not has_channels(vae) or not has_channels(unet):
        raise UserError(_lacks_channels(folder))
    refuse_odd_numbers(folder)
    side = unet.get("sample_size")
    return ModelInfo(
        folder,
        family,
        objective,
        source,
        kind is not None,
        layout="diffusers folder",
        resolution=(
            side * vae_factor(vae)
            if isinstance(side, int) and 0 < side <= 4096
            else facts_of(family).resolutions[objective]
        ),
        size_step=image_step(vae, unet),
        width=unet["block_out_channels"][0],
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
    )


def has_channels(config: JsonObject) -> bool:
    """Whether a configuration says how many channels its blocks have: what tells the depth of the model."""
    widths = config.get("block_out_channels")
    return isinstance(widths, list) and 0 < len(widths) <= 8 and all(isinstance(width, int) for width in widths)


NUMBERS = (  # used before diffusers or transformers could check them: part, name, least, most
    ("scheduler/scheduler_config.json", "beta_start", 0, 1),
    ("scheduler/scheduler_config.json", "beta_end", 0, 1),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 1, 100_000),
    ("unet/config.json", "layers_per_block", 1, 100),
    ("vae/config.json", "layers_per_block", 1, 100),
    ("text_encoder/config.json", "num_hidden_layers", 1, 1000),
    ("text_encoder/config.json", "vocab_size", 1, 10_000_000),
)


def refuse_odd_numbers(folder: Path) -> None:
    """Raise a UserError for a number without which nothing can be worked out, or that would keep us busy for ever."""
    for part, name, least, most in NUMBERS:
        config = read_json(folder / part) or {}
        value = config.get(name)
        if value is None or (type(value) in (int, float) and least <= value <= most):
            continue
        raise UserError(
            say(
                f"{folder / part}: {name} = {value} is not a number from {least} to {most}; the file is damaged. "
                "Download it again.",
                f"{folder / part}：{name} = {value} 不是 {least} 到 {most} 之间的数，文件已损坏，请重新下载。",
            )
        )


def not_a_whole_folder(folder: Path) -> UserError:
    """The error for a folder without model_index.json: which part it is, or which files in it may be meant."""
    config = read_json(folder / "config.json") or {}
    class_name = str(config.get("_class_name") or config.get("architectures"))
    if (folder / "adapter_config.json").is_file() or (folder / "pytorch_lora_weights.safetensors").is_file():
        return not_a_base_model(folder, "a LoRA", "LoRA", NOT_A_BASE)
    for word, english, chinese in PART_CLASSES:
        if word in class_name:
            return not_a_base_model(folder, english, chinese, folder_cure(folder / "_", WHOLE_MODEL))
    files = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES)
    if files:
        listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        return UserError(
            say(
                f"{folder}: this is a folder, not a model. Give the path of one of its files: {listed}",
                f"{folder}：这是文件夹，不是模型。请填写其中某个文件的路径：{listed}",
            )
        )
    return UserError(_contains_no_model(folder))


def read_json(path: Path) -> JsonObject | None:
    """The object in a small JSON file; None if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            say(
                f"{path}: this JSON file cannot be read ({error}). Download it again.",
                f"{path}：这个 JSON 文件无法读取（{error}），请重新下载。",
            )
        ) from error
    return content if isinstance(content, dict) else {}


def _guessed_by_spread(spread: float, objective: str) -> str:
    return say(
        f"guessed as ComfyUI does: a bias spreads by {spread:.3f}, and "
        + ("more" if objective == "v" else "less")
        + " than 0.09 is the way of "
        + ("SD 2.x 768-v" if objective == "v" else "SD 2.x base models")
        + "; if that is wrong, set v_parameterization",
        f"按 ComfyUI 的办法推断：某层偏置的标准差为 {spread:.3f}，"
        + ("大于 0.09，像 SD 2.x 768-v" if objective == "v" else "不大于 0.09，像 SD 2.x base")
        + "；如果不对，请自行设置 v_parameterization",
    )


def _other_prediction(folder: Path, kind: object, class_name: object) -> str:
    return say(
        f"{folder}: its scheduler says prediction_type = {kind} ({class_name}); only epsilon "
        "and v_prediction can be trained here. Use another base model.",
        f"{folder}：scheduler 写明 prediction_type = {kind}（{class_name}），本程序只支持 "
        "epsilon 和 v_prediction，请换用其他底模。",
    )


def _lacks_channels(folder: Path) -> str:
    return say(
        f"{folder}: vae/config.json or unet/config.json is missing or has no block_out_channels such as [320, "
        "640]; the download is not complete or damaged. Download it again.",
        f"{folder}：vae/config.json 或 unet/config.json 缺失，或没有形如 [320, 640] 的 block_out_channels，"
        "文件夹没有下载完整或已损坏，请重新下载。",
    )


def _contains_no_model(folder: Path) -> str:
    return say(
        f"{folder}: this folder contains no model: neither model_index.json (a diffusers folder) nor a "
        ".safetensors or .ckpt file. Give the path of the model.",
        f"{folder}：这个文件夹里没有模型：既没有 model_index.json（diffusers 文件夹的标志），"
        "也没有 .safetensors 或 .ckpt 文件。请填写模型的路径。",
    )
