"""What an output says about itself: recipe, A1111 text, XMP.

The recipe travels as JSON: in a TIFF as ImageDescription, in a PNG as a text chunk, in a JPEG
as comments, in WebP and AVIF inside the XMP, beside tiles as a file. A1111's text goes with it:
in a PNG as a text chunk, in a TIFF inside the XMP, elsewhere as Exif's comment.

References:
    IPTC, "Guidance on using IPTC photo metadata for generated images" (digital source type).
    Adobe, "XMP Specification Part 1".
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, unescape

from hirescli.output.parameters import parameters_text
from hirescli.recipe import Recipe, read_json_fragment

RECIPE_KEY = "hires_recipe"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DIGITAL_SOURCE_TYPE = _SOURCE_TYPES + "trainedAlgorithmicMedia"
# Of a picture that a model has drawn over another one.
COMPOSITE_SOURCE_TYPE = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
# A JPEG segment ends at 64 KiB and XMP must fit into one; the recipe holds the whole prompt.
_DESCRIPTION_LIMIT = 2000
_TEXT_LIMIT_BYTES = 16 * 2**20
_NAMESPACE = "urn:hires:recipe"
_IN_XMP = re.compile(rb"<hires:recipe[^>]*>(.*?)</hires:recipe>", re.DOTALL)
_END = b"</rdf:Description>"
_END_OF_ALL = b"</rdf:RDF>"
_EXIF_NAMESPACE = "http://ns.adobe.com/exif/1.0/"
_COMMENT_IN_XMP = re.compile(rb"<exif:UserComment[^>]*>.*?<rdf:li[^>]*>(.*?)</rdf:li>", re.DOTALL)
_NOT_IN_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass(frozen=True)
class Texts:
    """What is embedded in one output; of our own pictures a function of the recipe.

    Attributes:
        recipe: JSON in ASCII; "" where nobody knows it.
        parameters: The A1111 text; "" without one.
        xmp: A packet; b"" without one.
    """

    recipe: str
    parameters: str
    xmp: bytes

    @property
    def recipe_itself(self) -> str:
        """The recipe without a key around it, for formats whose texts have keys; "" without."""
        return (
            json.dumps(json.loads(self.recipe)[RECIPE_KEY], sort_keys=True) if self.recipe else ""
        )

    @property
    def xmp_with_recipe(self) -> bytes:
        """The packet with the recipe in it, for formats that have no other place."""
        if not self.recipe or _END not in self.xmp:
            return self.xmp
        text = escape(self.recipe)
        said = f'<hires:recipe xmlns:hires="{_NAMESPACE}">{text}</hires:recipe>\n'
        return self.xmp.replace(_END, said.encode() + _END, 1)

    @property
    def xmp_with_parameters(self) -> bytes:
        """The packet with the A1111 text as Exif's comment in it, for formats without Exif."""
        if not self.parameters or b"exif:UserComment" in self.xmp:
            return self.xmp
        comment = escape(_NOT_IN_XML.sub(" ", self.parameters), {"\r": "&#13;"})
        said = (
            f'<rdf:Description rdf:about="" xmlns:exif="{_EXIF_NAMESPACE}">\n'
            '<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">'
            f"{comment}</rdf:li></rdf:Alt></exif:UserComment>\n</rdf:Description>\n"
        )
        packet = self.xmp or _packet("").encode()
        return packet.replace(_END_OF_ALL, said.encode() + _END_OF_ALL, 1)

    @property
    def sidecar(self) -> str:
        """All of it as JSON, for formats of several files."""
        said: dict[str, Any] = json.loads(self.recipe) if self.recipe else {}
        if self.parameters:
            said["parameters"] = self.parameters
        for source_type in (DIGITAL_SOURCE_TYPE, COMPOSITE_SOURCE_TYPE):
            if source_type.encode() in self.xmp:
                said["digital_source_type"] = source_type
        return json.dumps(said, ensure_ascii=True)  # the recipe comes first: see `embedded`


def describe(recipe: Recipe) -> Texts:
    """The texts that an output of this recipe carries."""
    wrapped = {RECIPE_KEY: json.loads(recipe.to_json())}
    # ASCII with escapes: TIFF's ImageDescription is defined as 7-bit.
    text = json.dumps(wrapped, sort_keys=True, ensure_ascii=True)
    return Texts(recipe=text, parameters=parameters_text(recipe), xmp=xmp_packet(recipe))


def xmp_packet(recipe: Recipe) -> bytes:
    """XMP that declares the picture as made by a trained model, with the prompt as caption.

    One that was made from another picture is declared as a composite with it.
    """
    composite = recipe.source is not None or recipe.init_image is not None
    source_type = COMPOSITE_SOURCE_TYPE if composite else DIGITAL_SOURCE_TYPE
    caption = escape(recipe.prompt[:_DESCRIPTION_LIMIT])
    return _packet(
        '<rdf:Description rdf:about=""\n'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"\n'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">\n'
        f"<Iptc4xmpExt:DigitalSourceType>{source_type}"
        "</Iptc4xmpExt:DigitalSourceType>\n"
        "<xmp:CreatorTool>hires</xmp:CreatorTool>\n"
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{caption}</rdf:li></rdf:Alt></dc:description>\n"
        "</rdf:Description>\n"
    ).encode()


def _packet(descriptions: str) -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        f"{descriptions}</rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )


def embedded(text: str, *, source: str) -> dict[str, Any] | None:
    """The recipe in one text of a file, if it is one; other programs' texts are not.

    Raises:
        ConfigError: If it begins like ours and is no JSON.
    """
    if not text.startswith(f'{{"{RECIPE_KEY}"') or len(text) > _TEXT_LIMIT_BYTES:
        return None
    fragment = read_json_fragment(text, source=source).get(RECIPE_KEY)
    return fragment if isinstance(fragment, dict) else None


def parameters_in_xmp(xmp: bytes) -> str:
    """The A1111 text inside an XMP packet; "" if there is none."""
    found = _COMMENT_IN_XMP.search(xmp[:_TEXT_LIMIT_BYTES])
    return html.unescape(found[1].decode(errors="replace")) if found else ""


def recipe_in_xmp(xmp: bytes) -> str:
    """The text of the recipe inside an XMP packet; "" if there is none."""
    found = _IN_XMP.search(xmp[:_TEXT_LIMIT_BYTES])
    return unescape(found[1].decode(errors="replace")) if found else ""
